"""Prompts to images through an output projector: no codes are written."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from pictish.decoder.condition import check_reads_features
from pictish.lm.adapted import Base, read_base
from pictish.lm.output_projector import OutputProjector, load_output_projector
from pictish.pipelines.continuous.train import prompt_ids
from pictish.pipelines.drawing import generators
from pictish.pipelines.language import Precision
from pictish.pipelines.recipe import SAMPLED
from pictish.pipelines.reconstruct import Reconstructor
from pictish.pipelines.settings import GenerationConfig
from pictish.training.isolation import inference, loading

OF_CODES = (*SAMPLED, "min_codes", "max_codes")  # settings that say how codes are written


class ContinuousGenerator:
    """A frozen language model, an output projector and a generator, joined."""

    def __init__(self, base: Base, projector: OutputProjector, reconstructor: Reconstructor) -> None:
        if reconstructor.decoder is not None:
            check_reads_features(reconstructor.decoder.model.config.condition)
        self.base, self.projector, self.reconstructor = base, projector, reconstructor

    @classmethod
    @loading
    def from_folder(
        cls,
        projector: str | Path,
        model: str | Path = "starter",
        lm: str | Path | None = None,
        device: str | torch.device = "cpu",
        *,
        steps: int | None = None,
        precision: Precision = "float32",
    ) -> "ContinuousGenerator":
        """Load an output projector's folder with the model that it belongs to.

        Tokenizer and decoder are those of `model`, the language model too unless `lm` is another folder, one
        of pictish or of transformers. Without a diffusion decoder, or with `steps` 0, the tokenizer itself
        makes the pixels. ValueError for parts that do not belong together and a decoder that reads codes.
        """
        base = read_base(model if lm is None else lm, device, getattr(torch, precision))
        reconstructor = Reconstructor.from_folder(model, device, steps=steps, precision=precision)
        found = load_output_projector(projector, base, reconstructor.tokenizer.fingerprint)
        return cls(base, found, reconstructor)

    @inference
    def features(self, prompts: Sequence[str]) -> torch.Tensor:
        """Features (B, N, F) of all cells, as `Tokenizer.reconstruct` gives them for codes."""
        found: torch.Tensor = self.projector(self.base.language, prompt_ids(self.base, prompts))
        return found.float()

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        config: GenerationConfig | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        """A square RGB image for each prompt and seed; the decoder's settings of `config` count.

        The features follow from the prompt alone; what differs from seed to seed is the decoder's noise.
        ValueError for empty prompts and for settings of the language model's sampling.
        """
        if not prompts or any(not prompt.strip() for prompt in prompts):
            raise ValueError("an empty prompt; say what to draw")
        config = config or GenerationConfig()
        asked = [name for name in OF_CODES if getattr(config, name) is not None]
        if asked:
            raise ValueError(
                f"{asked[0]}: applies to codes, which an output projector does not write; omit it"
            )
        return self.reconstructor.from_features(
            self.features([prompt.strip() for prompt in prompts]),
            config.size,
            generators=generators(seeds),
            drawing=config.drawing,
            progress=progress,
        )
