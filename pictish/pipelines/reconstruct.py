"""Tokens back to pictures, each in the shape of its original."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pictish.data.model_folder import find_decoder, fingerprint
from pictish.data.tokens import TokenizedImage
from pictish.pipelines.language import Precision

if TYPE_CHECKING:
    import torch

    from pictish.decoder.pixel import Decoder, Source
    from pictish.decoder.preview import Preview
    from pictish.tokenizer.dynamic import Tokenizer

DEFAULT_SIZE = 256
SAME_PIXELS = 0.06  # root mean square below which a cell counts as unchanged by an edit, pixels in [0, 1]
ALIKE = 0.9  # the same for tokenizers that do not place codes: cosine of features above it


@dataclass(frozen=True)
class Drawing:
    """How codes become pixels; what is left away is the decoder's own choice."""

    steps: int | None = None
    """Of the diffusion decoder; 0 is the preview."""
    guidance: float | None = None
    scheduler: str | None = None
    """Class name of a diffusers scheduler."""


class Reconstructor:
    """A tokenizer and a decoder, joined: `Reconstructor.from_folder("starter")(tokens)`.

    Of `preview` and `decoder` one is None.
    """

    def __init__(
        self, tokenizer: "Tokenizer", preview: "Preview | None", decoder: "Decoder | None", fingerprint: str
    ) -> None:
        assert (preview is None) != (decoder is None)
        self.tokenizer, self.preview, self.decoder = tokenizer, preview, decoder
        self.fingerprint = fingerprint  # of the decoder

    @classmethod
    def from_folder(
        cls,
        folder: str | Path = "starter",
        device: "str | torch.device" = "cpu",
        tokenizer: "Tokenizer | None" = None,
        *,
        steps: int | None = None,
        lowres: bool = False,
        precision: Precision = "float32",
    ) -> "Reconstructor":
        """Load one model folder, or the shipped `"starter"`; ValueError when a part is missing.

        A `tokenizer` that is loaded already is used as it is. One decoder is loaded: the preview when `steps`
        is 0 or where there is no other; the one of low resolution when `lowres`, or where it is the only one.
        `precision` is the denoiser's.
        """
        import torch

        from pictish.tokenizer.dynamic import Tokenizer

        drawn = None if steps == 0 else find_decoder(folder, "diffusion", lowres=lowres)
        if lowres and drawn is None:
            raise ValueError(
                f"{folder}: has no decoder of low resolution (decoder-lowres); leave --lowres away"
            )
        plain = find_decoder(folder, "preview") if steps == 0 or drawn is None else None
        if drawn is None and plain is None:
            raise ValueError(
                f"no {'preview' if steps == 0 else 'decoder'} found for model {str(folder)!r}; "
                "looked in it and in its folders decoder and preview"
            )
        if drawn is None and steps:
            raise ValueError(f"{folder}: has a preview alone, which takes no steps; leave --steps away")
        if tokenizer is None:
            tokenizer = Tokenizer.from_folder(folder, device=device)
        decoder, preview = None, None
        if drawn is not None:
            from pictish.decoder.pixel import Decoder

            decoder = Decoder.from_folder(drawn, tokenizer, device, getattr(torch, precision))
        else:
            from pictish.decoder.preview import Preview

            assert plain is not None
            preview = Preview.from_folder(plain, tokenizer, device=device)
        path = drawn or plain
        assert path is not None
        return cls(tokenizer, preview, decoder, fingerprint(path))

    def __call__(
        self,
        tokens: Sequence[TokenizedImage],
        size: int | None = None,
        *,
        generators: "Sequence[torch.Generator] | None" = None,
        drawing: Drawing | None = None,
        sources: "Sequence[Source] | None" = None,
        strength: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        """One RGB picture each, `size` pixels on its longer side, with the original's aspect ratio.

        A decoder with shapes of its own draws in that nearest to the aspect ratio, and leaves it at its size
        where none is given; others draw squares. Each picture's noise comes from its generator, seeded with 0
        where none are given. Raises ValueError for tokens of another tokenizer and for settings that the
        decoder cannot take.
        """
        import torch

        drawing = drawing or Drawing()
        self.check(drawing)
        generators = generators or [torch.Generator().manual_seed(0) for _ in tokens]
        if self.decoder is None:
            assert self.preview is not None
            drawn = list(self.preview.decode(tokens).numpy()) if tokens else []
        else:
            drawn = [np.empty(0, dtype=np.uint8)] * len(tokens)
            ways = [(self._shape(token), self.decoder.settings(token)) for token in tokens]
            for way in dict.fromkeys(ways):
                mine = [place for place, other in enumerate(ways) if other == way]
                decoded = self.decoder.decode(
                    [tokens[place] for place in mine],
                    [generators[place] for place in mine],
                    steps=drawing.steps,
                    guidance=drawing.guidance,
                    scheduler=drawing.scheduler,
                    size=way[0],
                    sources=[sources[place] for place in mine] if sources else None,
                    strength=strength,
                    progress=progress,
                )
                for place, picture in zip(mine, decoded.numpy(), strict=True):
                    drawn[place] = picture
        result = []
        for picture, token in zip(drawn, tokens, strict=True):  # (height, width, 3) uint8
            shape = shape_of(token, size or self.usual_size or max(picture.shape[:2]))
            result.append(Image.fromarray(picture).resize(shape, Image.Resampling.BICUBIC))
        return result

    @property
    def usual_size(self) -> int | None:
        """Pixels of a picture's longer side where none are asked for; None: as it is drawn."""
        return None if self._shapes else DEFAULT_SIZE

    @property
    def _shapes(self) -> tuple[tuple[int, int], ...]:
        return () if self.decoder is None else self.decoder.model.config.shapes

    def _shape(self, token: TokenizedImage) -> tuple[int, int] | None:
        """The decoder's own (height, width) whose aspect ratio is nearest to the original's."""
        height, width = token.size
        return min(
            self._shapes,
            key=lambda shape: abs(math.log(shape[0] * width / (shape[1] * height))),
            default=None,
        )

    def check(self, drawing: Drawing) -> None:
        """ValueError for a drawing that the decoder cannot do."""
        if self.decoder is not None:
            self.decoder.check(drawing.steps, drawing.guidance, drawing.scheduler)
        elif drawing.scheduler is not None or drawing.guidance is not None:
            raise ValueError("the preview takes no scheduler and no guidance; leave --steps 0 or them away")

    def settled(self, drawing: Drawing) -> Drawing:
        """The drawing with the decoder's own choices filled in; ValueError when it cannot be done."""
        self.check(drawing)
        if self.decoder is None:
            return Drawing(steps=0)
        own = self.decoder.model.config.sampling
        return Drawing(
            own.steps if drawing.steps is None else drawing.steps,
            own.guidance if drawing.guidance is None else drawing.guidance,
            drawing.scheduler or own.scheduler,
        )

    def kept(self, picture: Image.Image, tokens: Sequence[TokenizedImage]) -> "list[Source] | None":
        """What of `picture` is to stay in each of the pictures that `tokens` will give, edits of it.

        That is where its own tokens and the new ones tell the same. None for a decoder that was not trained
        to be shown parts of a picture.
        """
        if self.decoder is None or not self.decoder.model.config.condition.source:
            return None
        import torch
        import torch.nn.functional as F

        from pictish.data.images import fit_square
        from pictish.decoder.pixel import Source
        from pictish.tokenizer.conv import cell_errors

        own = self.tokenizer.reconstruct(self.tokenizer.tokenize([picture]))  # (1, N, F)
        new = self.tokenizer.reconstruct(tokens)  # (B, N, F)
        if self.tokenizer.places_codes:
            before, after = self.tokenizer.pixels_in(own), self.tokenizer.pixels_in(new)
            assert before is not None
            assert after is not None
            stays = cell_errors(after, before, self.tokenizer.grid[0]).sqrt() < SAME_PIXELS  # (B, N)
        else:
            stays = F.cosine_similarity(new, own, dim=-1) > ALIKE
        pixels = torch.from_numpy(fit_square(picture.convert("RGB"), self.decoder.side))
        return [Source(pixels, row) for row in stays.cpu()]


def shape_of(token: TokenizedImage, size: int) -> tuple[int, int]:
    """(width, height) in pixels of a picture with the original's aspect ratio and a longer side of `size`."""
    height, width = token.size
    longer = max(height, width)
    return max(1, round(size * width / longer)), max(1, round(size * height / longer))
