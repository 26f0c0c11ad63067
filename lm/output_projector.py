"""An output projector: learned queries behind a prompt, whose states become the condition of a generator.

The frozen language model reads the prompt with the queries behind it, and the projector maps their last
states to features of all cells of an image, as the tokenizer's reconstructor gives them. A diffusion decoder,
or the tokenizer itself, makes pixels of these. The language model needs no codes for this and stays as it is
(GILL: arXiv 2305.17216; NExT-GPT: 2309.05519; MetaQueries: 2504.06256).

Legend: B prompts, L ids, Q queries, D width of the language model, N cells, F feature channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from pictish.configs import Config, parse
from pictish.io.budget import sized_like
from pictish.io.model_folder import (
    CONFIG,
    WEIGHTS,
    load_strictly,
    read_config,
    read_model_folder,
    write_model_folder,
)
from pictish.lm.adapted import Base
from pictish.lm.pretrained import type_to_store, width_of
from pictish.training.isolation import loading


class OutputProjectorConfig(Config):
    """Queries, and the transformer that maps their states to features."""

    queries: int = Field(
        16, gt=0, description="learned embeddings that the language model reads behind a prompt"
    )
    width: int = Field(256, gt=0, description="of the projector's layers")
    layers: int = Field(2, gt=0, description="in which cells attend to each other and to the queries' states")
    heads: int = Field(4, gt=0, description="attention heads of a layer")

    @model_validator(mode="after")
    def _heads_divide(self) -> "OutputProjectorConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class OutputProjectorFolder(Config):
    """`config.yaml` of an output projector's folder."""

    part: Literal["output-projector"] = "output-projector"
    format: Literal[1] = 1
    base: str  # fingerprint of the language model's weights, as `weights_fingerprint` gives it
    tokenizer: str  # fingerprint of the tokenizer whose features it predicts
    cells: int
    features: int
    model: OutputProjectorConfig


class OutputProjector(nn.Module):
    """Prompts of a frozen language model to features of all cells."""

    def __init__(self, config: OutputProjectorConfig, width: int, cells: int, features: int):
        """`width` is that of the language model."""
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.randn(config.queries, width) * 0.02)
        self.from_states = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.width))
        self.cells = nn.Parameter(torch.randn(cells, config.width) * 0.02)
        layer = nn.TransformerDecoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(config.width))
        self.to_features = nn.Linear(config.width, features)

    @classmethod
    def beside(
        cls, language: PreTrainedModel, config: OutputProjectorConfig, cells: int, features: int
    ) -> "OutputProjector":
        """With random weights; queries are drawn like rows of the language model's embedding table."""
        projector = cls(config, width_of(language), cells, features)
        table = language.get_input_embeddings().get_parameter("weight").detach().float()
        with torch.no_grad():
            projector.queries.copy_(
                table.mean(dim=0).cpu() + table.std(dim=0).cpu() * torch.randn_like(projector.queries)
            )
        return projector

    def forward(self, language: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Features (B, N, F) for prompts of ids, which may be empty and of different length."""
        states = self.states(language, prompts).to(self.cells.dtype)
        cells = self.cells.expand(len(states), -1, -1)
        return self.to_features(self.layers(cells, self.from_states(states)))

    def states(self, language: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The language model's last states (B, Q, D) of the queries behind each prompt."""
        table = language.get_input_embeddings()
        device = self.queries.device
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        real = torch.ones(len(prompts), longest + len(self.queries), dtype=torch.long)
        for row, prompt in enumerate(prompts):  # padded on the left, so that queries follow their prompt
            ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            real[row, : longest - len(prompt)] = 0
        real = real.to(device)
        words = table(ids.to(device))
        queries = self.queries.to(words.dtype).expand(len(prompts), -1, -1)
        body: Any = language.base_model  # without the head, whose logits nobody needs
        output = body(
            inputs_embeds=torch.cat([words, queries], dim=1),
            attention_mask=real,
            position_ids=(real.cumsum(dim=1) - 1).clamp_min(0),
            use_cache=False,
        )
        states: Tensor = output.last_hidden_state[:, longest:]
        return states


def save_output_projector(
    folder: Path, projector: OutputProjector, base: str, tokenizer: str, *, overwrite: bool = False
) -> None:
    """Write its folder, weights in fp16 where all fit it; `base` and `tokenizer` are fingerprints.

    ValueError for weights that are no finite numbers.
    """
    tensors = projector.state_dict()
    stored = type_to_store(tensors.items(), torch.float16, folder)
    config = OutputProjectorFolder(
        base=base,
        tokenizer=tokenizer,
        cells=len(projector.cells),
        features=projector.to_features.out_features,
        model=projector.config,
    )
    weights = {name: tensor.to(stored) for name, tensor in tensors.items()}
    write_model_folder(folder, config.model_dump(mode="json"), weights, overwrite)


@loading
def load_output_projector(folder: str | Path, base: Base, tokenizer: str) -> OutputProjector:
    """The projector in a folder, frozen and on its base's device.

    ValueError for a folder that holds none, or one of another language model or tokenizer.
    """
    path = Path(folder).expanduser()
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path}: no output projector, it has no {CONFIG}")
    raw = read_config(path)
    if raw.get("part") != "output-projector":
        raise ValueError(
            f"{path}: an output projector was asked for, this folder holds part {raw.get('part')!r}"
        )
    config = parse(OutputProjectorFolder, raw, str(path / CONFIG))
    for what, trained, given in (
        ("language model", config.base, base.fingerprint),
        ("tokenizer", config.tokenizer, tokenizer),
    ):
        if trained != given:
            raise ValueError(f"{path}: an output projector of the {what} {trained}, not of {given}")
    with sized_like(path, str(path)):
        projector = OutputProjector(config.model, width_of(base.language), config.cells, config.features)
    load_strictly(projector, read_model_folder(path).tensors, str(path / WEIGHTS))
    device = base.language.get_input_embeddings().get_parameter("weight").device
    return projector.to(device).eval().requires_grad_(False)
