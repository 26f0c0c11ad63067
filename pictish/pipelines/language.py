"""A language model joined with the tokenizer whose codes it speaks: words and images in, prompts out."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from pictish.data.words import check_text
from pictish.training.isolation import inference, loading

if TYPE_CHECKING:
    import torch

    from pictish.lm.autoregressive import Branch, Prompt
    from pictish.lm.model import ImageTokens, UnifiedModel
    from pictish.lm.sequence import Part
    from pictish.tokenizer.dynamic import Tokenizer

Precision = Literal["float32", "bfloat16"]
Said = str | Image.Image  # one part of what a user says


class Language:
    """Reads what users say: `Language.from_folder("starter").prompt(["a red apple"], draw=True)`."""

    def __init__(self, tokenizer: "Tokenizer", model: "UnifiedModel") -> None:
        if model.image_tokens is None:
            raise ValueError("this language model reads and writes no codes; it can describe and chat")
        if model.image_tokens.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"the language model speaks codes of tokenizer {model.image_tokens.fingerprint}, "
                f"not of {tokenizer.fingerprint}; load a model folder whose parts belong together"
            )
        if model.image_tokens.cells != (tokenizer.cells if tokenizer.places_codes else None):
            raise ValueError(
                "of tokenizer and language model only one reads where codes lie; "
                "load a model folder whose parts belong together"
            )
        self.tokenizer, self.model = tokenizer, model

    @classmethod
    @loading
    def from_folder(
        cls,
        folder: str | Path = "starter",
        device: "str | torch.device" = "cpu",
        precision: Precision = "float32",
    ) -> "Language":
        """Load both from one model folder, or the shipped `"starter"`; ValueError when one is missing.

        `precision` is that of the language model: with fewer digits the tokenizer would give other codes.
        """
        import torch

        from pictish.lm.model import UnifiedModel
        from pictish.tokenizer.dynamic import Tokenizer

        model = UnifiedModel.from_folder(folder, device, getattr(torch, precision))
        return cls(Tokenizer.from_folder(folder, device), model)

    @property
    def image_tokens(self) -> "ImageTokens":
        """The image tokenizer whose codes the model reads and writes."""
        tokens = self.model.image_tokens
        assert tokens is not None, "as was checked when it was made"
        return tokens

    def parts(self, said: Sequence[Said], *, continuous: bool = False) -> "list[Part]":
        """Text and images as parts of a sequence; images as codes, or as continuous features."""
        from pictish.lm.sequence import Codes, Features, Text

        if continuous and self.model.projector is None:
            raise ValueError("this language model has no projector for continuous features; use codes")
        pictures = [one for one in said if isinstance(one, Image.Image)]
        encoded = self.tokenizer.encode(
            pictures,
            features_for="understanding" if continuous else None,
            # as many codes as in training
            threshold=self.model.defaults.threshold,
        )
        waiting = iter(
            Codes(one.tokens.ids, one.tokens.cells) if one.features is None else Features(one.features)
            for one in encoded
        )
        # stripped, as captions are for training
        return [next(waiting) if isinstance(one, Image.Image) else Text(one.strip()) for one in said]

    def prompt(self, said: Sequence[Said], *, draw: bool, continuous: bool = False) -> "Prompt":
        """What the model is to continue: with an image when `draw`, else with text.

        A prompt to draw has branches for guidance: with nothing, and where it holds images with them alone.
        Raises ValueError when nothing was said.
        """
        from pictish.lm.autoregressive import Prompt
        from pictish.lm.sequence import Text

        if not said or any(isinstance(one, str) and not one.strip() for one in said):
            raise ValueError("an empty prompt; say what to draw or to describe")
        for one in said:
            if isinstance(one, str):
                check_text("prompt", one)
        parts = self.parts(said, continuous=continuous)
        full = self.embed(parts, draw)
        if not draw:
            return Prompt(full.embedded, positions={"full": full.positions})
        shown = [part for part in parts if not isinstance(part, Text)]
        image_only = self.embed(shown, draw) if 0 < len(shown) < len(parts) else full if shown else None
        nothing = self.embed([], draw)
        found = {"full": full, "image_only": image_only, "nothing": nothing}
        return Prompt(
            full=full.embedded,
            image_only=None if image_only is None else image_only.embedded,
            nothing=nothing.embedded,
            inside=True,
            positions={name: branch.positions for name, branch in found.items() if branch is not None},
        )

    @inference
    def embed(self, parts: "Sequence[Part]", draw: bool) -> "Branch":
        """Embeddings and positions of parts, with the marker that opens an image behind them when `draw`."""
        import numpy as np
        import torch

        from pictish.lm.autoregressive import Branch
        from pictish.lm.sequence import join
        from pictish.lm.vocabulary import text_ids

        model, vocabulary = self.model, self.model.vocabulary
        joined = join("interleaved", parts, vocabulary, partial(text_ids, model.text_tokenizer))
        ids = np.append(joined.ids, vocabulary.begin) if draw else joined.ids
        positions = np.cumsum(vocabulary.strides(ids)) - 1  # no skip comes first
        device = self.tokenizer.device
        places = torch.from_numpy(np.stack([np.zeros_like(joined.places), joined.places])).to(device)
        features = None if joined.features is None else torch.from_numpy(joined.features).to(device)
        embedded = model.embed(torch.from_numpy(ids)[None].to(device), features, places)[0]
        return Branch(embedded, torch.from_numpy(positions).to(device))
