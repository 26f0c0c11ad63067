"""Questions to a language model that reads images through a vision tower and inner adaptors, as in IAA.

The model folder is that of `pictish import iaa`. A question is a dialogue of one turn in the layout of Llama
3, image before the words; each question is answered by the adaptor that it names, all in one batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from pydantic import ConfigDict

from pictish.configs import Config, parse
from pictish.io.files import one_line
from pictish.io.model_folder import CONFIG, read_config, refuse_foreign_code
from pictish.training.isolation import inference, loading

if TYPE_CHECKING:
    import torch
    from transformers import CLIPVisionModel, PreTrainedModel

    from pictish.lm.adapted import Base
    from pictish.lm.model import Projector
    from pictish.lm.quantize import Bits

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, as openai/CLIP normalizes
STD = (0.26862954, 0.26130258, 0.27577711)
LAYER = -2  # hidden state of the tower that is read, without the class token
GENERAL = "general"
MOST = 256  # text tokens
CAPTION = "Describe this image."
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


class DialogueFolder(Config):
    """`config.yaml` of the model folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    part: Literal["dialogue"]
    format: Literal[1] = 1
    system: str | None = None


def is_dialogue(model: str | Path) -> bool:
    """Whether a model folder is asked by `Dialogue`."""
    folder = Path(model).expanduser()
    return (folder / CONFIG).is_file() and read_config(folder).get("part") == "dialogue"


class Dialogue:
    """A base, its adaptors by name, and the tower that all of them see through."""

    def __init__(self, base: "Base", tower: "CLIPVisionModel", system: str | None = None) -> None:
        self.base, self.tower, self.system = base, tower, system
        self.paths: dict[str, tuple[PreTrainedModel, Projector]] = {}
        known = base.text_tokenizer.get_vocab()
        if missing := [token for token in HEADERS if token not in known]:
            raise ValueError(f"the text tokenizer has no {missing[0]}; that of Llama 3 was expected")
        self.headers = [known[token] for token in HEADERS]

    @classmethod
    @loading
    def from_folder(
        cls,
        folder: str | Path,
        device: str = "auto",
        dtype: str = "float32",
        adaptor_folders: Sequence[Path] = (),
        quantize: "Bits | None" = None,
    ) -> "Dialogue":
        """Load `pictish import iaa`'s OUT with the adaptors in it, and those of other folders.

        With `quantize` the weights of base and tower, not those of adaptors, are quantized.
        ValueError for anything else, and for adaptors of another base.
        """
        import torch
        from transformers import CLIPVisionModel

        from pictish.io.budget import sized_like
        from pictish.lm.adapted import read_base
        from pictish.lm.pretrained import quietly
        from pictish.pipelines import adaptors
        from pictish.training.runtime import resolve_device

        path, where = Path(folder).expanduser(), resolve_device(device)
        settings = parse(DialogueFolder, read_config(path), str(path / CONFIG))
        tower_folder = path / "vision_tower"
        try:
            refuse_foreign_code(tower_folder)
            with quietly(), sized_like(tower_folder, str(tower_folder)):
                tower: Any = CLIPVisionModel.from_pretrained(
                    tower_folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
                )
        except Exception as error:  # transformers raises many kinds for a folder that is not whole
            raise ValueError(
                f"{tower_folder}: cannot be loaded as a CLIP tower ({one_line(error)})"
            ) from error
        base = read_base(path / "lm", where, getattr(torch, dtype))
        tower = tower.to(where).eval()
        if quantize is not None:
            from pictish.lm.quantize import quantize as quantized

            for network in (base.language, tower):
                quantized(network, quantize)
        made = cls(base, tower, settings.system)
        for name, place in adaptors.adaptor_folders(path, adaptor_folders).items():
            made.load_adaptor(place, name)
        return made

    def load_adaptor(self, folder: Path, name: str) -> None:
        """Load an adaptor; ValueError for one of another base, or for another tower."""
        from pictish.lm.adapted import read_adaptor
        from pictish.lm.adaptors import adapted

        config, adaptor, projector = read_adaptor(folder, self.base)
        width = self.tower.config.hidden_size
        if projector is None or config.features != width:
            raise ValueError(f"{folder}: reads features of {config.features} channels, the tower has {width}")
        self.paths[name] = adapted(self.base.language, adaptor), projector

    def unload_adaptor(self, name: str) -> None:
        """Forget an adaptor and free its memory; ValueError when none of this name is loaded."""
        if self.paths.pop(name, None) is None:
            raise ValueError(f"no adaptor called {name} is loaded; {', '.join(sorted(self.paths))} would fit")

    @inference
    def features(self, image: Image.Image) -> "torch.Tensor":
        """The tower's rows (N, F) of an image, which is padded to a square in the mean colour."""
        import numpy as np
        import torch

        side: Any = self.tower.config.image_size
        square = Image.new("RGB", (max(image.size),) * 2, tuple(round(255 * value) for value in MEAN))
        square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
        pixels = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        normalized = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        tower_weight = self.tower.get_parameter("embeddings.class_embedding")
        given = torch.from_numpy(normalized).permute(2, 0, 1)[None].to(tower_weight)
        rows: torch.Tensor = self.tower(given, output_hidden_states=True).hidden_states[LAYER][0, 1:]
        return rows

    def _turn(self, role: str, text: str) -> list[int]:
        """Ids of one message; marks typed by a user stay text."""
        from pictish.lm.vocabulary import text_ids

        _, begin, end, over = self.headers
        words = self.base.text_tokenizer
        return [begin, *text_ids(words, role), end, *text_ids(words, f"\n\n{text}"), over]

    @inference
    def prompt(self, image: Image.Image | None, question: str, adaptor: str | None) -> "torch.Tensor":
        """Embeddings (L, D) of a dialogue up to the answer; without an adaptor it is text for the base."""
        import torch

        from pictish.lm.autoregressive import embed_ids
        from pictish.lm.vocabulary import text_ids

        start, begin, end, over = self.headers
        words = self.base.text_tokenizer
        model, projector = self._path(adaptor)
        before = [start] + (self._turn("system", self.system) if self.system else [])
        before += [begin, *text_ids(words, "user"), end]
        gap, said = (
            ("\n\n", f"\n{question.strip()}") if image is not None else ("", f"\n\n{question.strip()}")
        )
        before += text_ids(words, gap)
        behind = [*text_ids(words, said), over, begin, *text_ids(words, "assistant"), end]
        behind += text_ids(words, "\n\n")
        parts = [embed_ids(model, before), embed_ids(model, behind)]
        if image is not None:
            if projector is None:
                raise ValueError("an image, and no adaptor to read it through; name one")
            rows = self.features(image).to(parts[0].dtype)
            parts.insert(1, projector(rows))
        return torch.cat(parts)

    @inference
    def ask(
        self,
        images: Sequence[Image.Image | None],
        questions: Sequence[str | None],
        *,
        adaptors: Sequence[str | None] | None = None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """The likeliest answer to each question, word by word, all in one batch.

        `adaptors` names for each what answers; None is the general adaptor where there is an image, and the
        base itself where there is none. ValueError for names that are not loaded.
        """
        from pictish.lm.autoregressive import Branch, RoutedBatch
        from pictish.lm.text import decode_text

        names = [None] * len(images) if adaptors is None else list(adaptors)
        names = [
            GENERAL if name is None and image is not None else name
            for name, image in zip(names, images, strict=True)
        ]
        prompts = [
            self.prompt(image, question or CAPTION, name)
            for image, question, name in zip(images, questions, names, strict=True)
        ]
        if not prompts:
            return []
        most = max_new_tokens or MOST
        rows = [Branch.of(prompt) for prompt in prompts]
        batch = RoutedBatch([self._path(name)[0] for name in names], rows, most, "dynamic")
        ends = {self.headers[-1], self.base.text_tokenizer.eos_token_id}
        written: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        for step in range(most):
            ids = batch.logits.argmax(dim=-1).tolist()
            kept = [row for row, token in enumerate(ids) if token not in ends]
            for row in kept:
                written[going[row]].append(ids[row])
            if not kept or step == most - 1:
                break
            if len(kept) < len(going):
                batch.keep(kept)
            going = [going[row] for row in kept]
            batch.step([ids[row] for row in kept])
        return [decode_text(self.base.text_tokenizer, ids).strip() for ids in written]

    def _path(self, adaptor: str | None) -> "tuple[PreTrainedModel, Projector | Any]":
        if adaptor is None:
            return self.base.language, None
        if adaptor not in self.paths:
            raise ValueError(f"no adaptor is called {adaptor}; there are {', '.join(sorted(self.paths))}")
        return self.paths[adaptor]
