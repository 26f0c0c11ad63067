"""Tokens back to pictures, each in the shape of its original."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pictish.data.model_folder import fingerprint, locate_model
from pictish.data.tokens import TokenizedImage

if TYPE_CHECKING:
    import torch

    from pictish.decoder.preview import Preview
    from pictish.tokenizer.dynamic import Tokenizer

DEFAULT_SIZE = 256


class Reconstructor:
    """A tokenizer and the decoder trained for it, joined: `Reconstructor.from_folder("starter")(tokens)`."""

    def __init__(self, tokenizer: "Tokenizer", preview: "Preview", decoder: str) -> None:
        self.tokenizer, self.preview = tokenizer, preview
        self.decoder = decoder  # fingerprint of the decoder's folder

    @classmethod
    def from_folder(
        cls,
        folder: str | Path = "starter",
        device: "str | torch.device" = "cpu",
        tokenizer: "Tokenizer | None" = None,
    ) -> "Reconstructor":
        """Load both from one model folder, or the shipped `"starter"`; ValueError when one is missing.

        A `tokenizer` that is loaded already is used as it is.
        """
        from pictish.decoder.preview import Preview
        from pictish.tokenizer.dynamic import Tokenizer

        decoder = fingerprint(locate_model(folder, "decoder"))
        if tokenizer is None:
            tokenizer = Tokenizer.from_folder(folder, device=device)
        return cls(tokenizer, Preview.from_folder(folder, tokenizer, device=device), decoder)

    def __call__(self, tokens: Sequence[TokenizedImage], size: int = DEFAULT_SIZE) -> list[Image.Image]:
        """One RGB picture each, `size` pixels on its longer side, with the original's aspect ratio.

        ValueError for tokens of another tokenizer.
        """
        if not tokens:
            return []
        squares = self.preview.decode(tokens).cpu().numpy()  # (B, side, side, 3) uint8
        return [
            Image.fromarray(square).resize(shape_of(token, size), Image.Resampling.BICUBIC)
            for square, token in zip(squares, tokens, strict=True)
        ]


def shape_of(token: TokenizedImage, size: int) -> tuple[int, int]:
    """(width, height) in pixels of a picture with the original's aspect ratio and a longer side of `size`."""
    height, width = token.size
    longer = max(height, width)
    return max(1, round(size * width / longer)), max(1, round(size * height / longer))
