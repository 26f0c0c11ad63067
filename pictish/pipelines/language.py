"""A language model joined with the tokenizer whose codes it speaks: words and pictures in, prompts out."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from pictish.data.words import check_text
from pictish.training.isolation import inference, loading

if TYPE_CHECKING:
    import torch

    from pictish.lm.autoregressive import Prompt
    from pictish.lm.model import UnifiedModel
    from pictish.lm.sequence import Part
    from pictish.tokenizer.dynamic import Tokenizer

Precision = Literal["float32", "bfloat16"]
Said = str | Image.Image  # one part of what a user says


class Language:
    """Reads what users say: `Language.from_folder("starter").prompt(["a red apple"], draw=True)`."""

    def __init__(self, tokenizer: "Tokenizer", model: "UnifiedModel") -> None:
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

    def parts(self, said: Sequence[Said], *, continuous: bool = False) -> "list[Part]":
        """Text and pictures as parts of a sequence; pictures as codes, or as continuous features."""
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

    def prompt(
        self, said: Sequence[Said], *, draw: bool, continuous: bool = False, bare: bool = False
    ) -> "Prompt":
        """What the model is to continue: with a picture when `draw`, else with text.

        A prompt to draw has branches for guidance: with nothing, and where it holds pictures with them alone.
        With `bare` the pictures in it have no markers around them, as LaVIT's code has it. Raises ValueError
        when nothing was said.
        """
        from pictish.lm.autoregressive import Prompt
        from pictish.lm.sequence import Text

        if not said or any(isinstance(one, str) and not one.strip() for one in said):
            raise ValueError("an empty prompt; say what to draw or to describe")
        for one in said:
            if isinstance(one, str):
                check_text("prompt", one)
        parts = self.parts(said, continuous=continuous)
        if not draw:
            return Prompt(self.embed(parts, draw))
        shown = [part for part in parts if not isinstance(part, Text)]
        full = self.embed(parts, draw, bare)
        image_only = self.embed(shown, draw, bare) if 0 < len(shown) < len(parts) else full if shown else None
        return Prompt(
            full=full,
            image_only=image_only,
            nothing=self.embed([], draw),
            inside=True,
        )

    @inference
    def embed(self, parts: "Sequence[Part]", draw: bool, bare: bool = False) -> "torch.Tensor":
        """Embeddings (L, D) of parts, with the marker that opens a picture behind them when `draw`.

        `bare` is for codes: without the markers around them.
        """
        import numpy as np
        import torch

        from pictish.lm.sequence import join
        from pictish.lm.vocabulary import text_ids

        model, vocabulary = self.model, self.model.vocabulary
        joined = join("interleaved", parts, vocabulary, partial(text_ids, model.text_tokenizer))
        ids = joined.ids
        if bare:
            assert joined.features is None
            ids = ids[(ids != vocabulary.begin) & (ids != vocabulary.end)]
        ids = np.append(ids, vocabulary.begin) if draw else ids
        device = self.tokenizer.device
        places = torch.from_numpy(np.stack([np.zeros_like(joined.places), joined.places])).to(device)
        features = None if joined.features is None else torch.from_numpy(joined.features).to(device)
        return model.embed(torch.from_numpy(ids)[None].to(device), features, places)[0]
