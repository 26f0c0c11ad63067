"""Tokens back to images, each in the shape of its original."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from pictish.data.tokens import TokenizedImage
from pictish.io.model_folder import (
    find_decoder,
    find_upscaler,
    fingerprint,
)
from pictish.pipelines.language import Precision
from pictish.pipelines.settings import Drawing, settle_pixels
from pictish.training.isolation import inference, loading

if TYPE_CHECKING:
    import torch

    from pictish.decoder.pixel import Decoder, Source
    from pictish.decoder.preview import Preview
    from pictish.decoder.upscaler import Upscaler
    from pictish.tokenizer.dynamic import Tokenizer

DEFAULT_SIZE = 256
SAME_PIXELS = 0.06  # root mean square below which a cell counts as unchanged by an edit, pixels in [0, 1]
ALIKE = 0.9  # the same for tokenizers that do not place codes: cosine of features above it


class Reconstructor:
    """A tokenizer and a decoder, joined: `Reconstructor.from_folder("starter")(tokens)`.

    Of `preview` and `decoder` one is None, and `upscaler` where a model has none.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        preview: "Preview | None",
        decoder: "Decoder | None",
        fingerprint: str,
        upscaler: "Upscaler | None" = None,
    ) -> None:
        assert (preview is None) != (decoder is None)
        self.tokenizer, self.preview, self.decoder = tokenizer, preview, decoder
        self.fingerprint = fingerprint  # of the decoder
        self.upscaler = upscaler

    @classmethod
    @loading
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
        A tokenizer that places its codes reconstructs pixels itself, and needs no folder for its preview.
        `precision` is the denoiser's, and on a GPU the upscaler's too.
        """
        import torch

        from pictish.tokenizer.dynamic import Tokenizer

        drawn = None if steps == 0 else find_decoder(folder, "diffusion", lowres=lowres)
        if lowres and drawn is None:
            raise ValueError(
                f"{folder}: has no decoder of low resolution (decoder-lowres), which lowres asks for"
            )
        plain = find_decoder(folder, "preview") if steps == 0 or drawn is None else None
        own = reconstructs_pixels(folder) if tokenizer is None else tokenizer.places_codes
        if drawn is None and plain is None and not own:
            raise ValueError(
                f"no {'preview' if steps == 0 else 'decoder'} found for model {str(folder)!r}; "
                "looked in it and in its folders decoder and preview"
            )
        if drawn is None and steps:
            raise ValueError(f"{folder}: has only a preview, which takes no steps; omit steps")
        if tokenizer is None:
            tokenizer = Tokenizer.from_folder(folder, device=device)
        decoder, preview, upscaler = None, None, None
        if drawn is not None:
            from pictish.decoder.pixel import Decoder

            decoder = Decoder.from_folder(drawn, tokenizer, device, getattr(torch, precision))
        else:
            from pictish.decoder.preview import Preview

            preview = Preview.from_folder(plain or folder, tokenizer, device=device)
        if (beside := find_upscaler(folder)) is not None:
            from pictish.decoder.upscaler import Upscaler

            upscaler = Upscaler.from_folder(beside, device, getattr(torch, precision))
        path = drawn or plain
        name = tokenizer.fingerprint if path is None else fingerprint(path)
        return cls(tokenizer, preview, decoder, name, upscaler)

    @inference
    def __call__(
        self,
        tokens: Sequence[TokenizedImage],
        size: int | None = None,
        *,
        generators: "Sequence[torch.Generator] | None" = None,
        drawing: Drawing | None = None,
        generated: bool = False,
        sources: "Sequence[Source] | None" = None,
        strength: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        """One RGB image each, `size` pixels on its longer side, with the original's aspect ratio.

        What `drawing` leaves open is the model's default, which may be another for tokens that a language
        model `generated`. A decoder with shapes of its own draws in that nearest to the aspect ratio, and
        leaves it at its size where none is given; others draw squares. Each image's noise comes from its
        generator, seeded with 0 where none are given. An upscaler comes before the resize. Raises ValueError
        for tokens of another tokenizer and for settings that the decoder cannot take.
        """
        import torch

        settled = self.settled(drawing or Drawing(), generated=generated)
        generators = generators or [torch.Generator().manual_seed(0) for _ in tokens]
        drawn = self.pixels(
            tokens, settled, generators, sources=sources, strength=strength, progress=progress
        )
        longer = size or self.usual_size(settled)
        return [
            Image.fromarray(picture).resize(
                shape_of(token, longer or max(picture.shape[:2])), Image.Resampling.BICUBIC
            )
            for picture, token in zip(drawn, tokens, strict=True)
        ]

    def pixels(
        self,
        tokens: Sequence[TokenizedImage],
        drawing: Drawing,
        generators: "Sequence[torch.Generator]",
        *,
        sources: "Sequence[Source] | None" = None,
        strength: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[npt.NDArray[np.uint8]]:
        """RGB (height, width, 3) as decoder and upscaler draw them, squares or the decoder's own shapes.

        `drawing` is one that `settled` gave.
        """
        drawn: list[npt.NDArray[np.uint8]]
        if self.decoder is None:
            assert self.preview is not None
            drawn = list(self.preview.decode(tokens).numpy()) if tokens else []
        else:
            assert drawing.steps is not None
            assert drawing.guidance is not None
            drawn = [np.empty(0, dtype=np.uint8)] * len(tokens)
            shapes = [self._shape(token) for token in tokens]
            for shape in dict.fromkeys(shapes):
                mine = [place for place, other in enumerate(shapes) if other == shape]
                decoded = self.decoder.decode(
                    [tokens[place] for place in mine],
                    [generators[place] for place in mine],
                    steps=drawing.steps,
                    guidance=drawing.guidance,
                    scheduler=drawing.scheduler,
                    size=shape,
                    sources=[sources[place] for place in mine] if sources else None,
                    strength=strength,
                    progress=progress,
                )
                for place, picture in zip(mine, decoded.numpy(), strict=True):
                    drawn[place] = picture
        return self._upscaled(drawn, drawing)

    @inference
    def from_features(
        self,
        features: "torch.Tensor",
        size: int | None = None,
        *,
        generators: "Sequence[torch.Generator]",
        drawing: Drawing | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        """Square RGB images, `size` pixels each side, of features (B, N, F) that no codes gave.

        The diffusion decoder reads them, or without one the tokenizer's own pixels are taken. Other arguments
        and errors are those of `__call__` for generated images.
        """
        from pictish.decoder.condition import conditioning_on

        settled = self.settled(drawing or Drawing(), generated=True)
        conditioning = conditioning_on(features, self.tokenizer)
        if self.decoder is None:
            assert conditioning.pixels is not None, "a tokenizer without pixels has a decoder"
            rgb = (conditioning.pixels.clamp(0, 1) * 255).round().byte().movedim(1, -1).cpu()
        else:
            assert settled.steps is not None
            assert settled.guidance is not None
            device = self.decoder.device
            rgb = self.decoder.draw(
                conditioning.each(lambda tensor: tensor.to(device)),
                generators,
                steps=settled.steps,
                guidance=settled.guidance,
                scheduler=settled.scheduler,
                progress=progress,
            )
        drawn = self._upscaled(list(rgb.numpy()), settled)
        side = size or self.usual_size(settled)
        sides = [side or len(picture) for picture in drawn]
        return [
            Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
            for picture, side in zip(drawn, sides, strict=True)
        ]

    def _upscaled(self, drawn: list[npt.NDArray[np.uint8]], drawing: Drawing) -> list[npt.NDArray[np.uint8]]:
        import torch

        if (factor := self.factor(drawing)) == 1:
            return drawn
        assert self.upscaler is not None
        return [each.numpy() for each in self.upscaler.enlarge(map(torch.from_numpy, drawn), factor)]

    def usual_size(self, drawing: Drawing) -> int | None:
        """Pixels of an image's longer side where none are asked for; None: as it is drawn.

        A square that was upscaled keeps its size, others are resized to `DEFAULT_SIZE`.
        """
        if self._shapes:
            return None
        drawer = self.decoder or self.preview
        assert drawer is not None
        factor = self.factor(drawing)
        return drawer.side * factor if factor > 1 else DEFAULT_SIZE

    def factor(self, drawing: Drawing) -> int:
        """The super-resolution factor of a drawing; 1 where nothing is upscaled."""
        own = 1 if self.upscaler is None else self.upscaler.config.upscale
        return own if drawing.upscale is None else drawing.upscale

    def upscaler_of(self, drawing: Drawing) -> str | None:
        """Fingerprint of the upscaler that a drawing goes through, if it does."""
        return None if self.upscaler is None or self.factor(drawing) == 1 else self.upscaler.fingerprint

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

    def settled(self, drawing: Drawing, *, generated: bool = False) -> Drawing:
        """The drawing with the model's defaults for what it leaves open, as `settle_pixels`.

        ValueError for settings that the decoder or the upscaler cannot take.
        """
        if self.decoder is None and not (drawing.scheduler is None and drawing.guidance is None):
            raise ValueError("the preview takes neither scheduler nor guidance; omit them, or steps 0")
        own = None if self.decoder is None else self.decoder.model.config
        settled = settle_pixels(drawing, own, self.factor(drawing), generated=generated)
        assert settled.upscale is not None
        if self.upscaler is not None:
            self.upscaler.check(settled.upscale)
        elif settled.upscale != 1:
            raise ValueError(
                f"upscale: {settled.upscale} asked for; this model has no upscaler, so only 1 fits"
            )
        if self.decoder is not None:
            assert settled.steps is not None
            assert settled.guidance is not None
            self.decoder.check(settled.steps, settled.guidance, settled.scheduler)
        return settled

    @property
    def keeps_pixels(self) -> bool:
        """Whether the decoder was trained to be shown parts of an image, which then stay."""
        return self.decoder is not None and bool(self.decoder.model.config.condition.source)

    @inference
    def kept(
        self, pictures: Sequence[Image.Image], tokens: Sequence[TokenizedImage]
    ) -> "list[Source] | None":
        """What of each image is to stay in its edit, of which `tokens` are given.

        That is where its own tokens and the new ones tell the same. None unless `keeps_pixels`.
        """
        if not self.keeps_pixels:
            return None
        assert self.decoder is not None
        import torch
        import torch.nn.functional as F

        from pictish.data.images import fit_square, load_image
        from pictish.decoder.pixel import Source
        from pictish.tokenizer.conv import cell_errors

        distinct = {id(picture): picture for picture in pictures}  # several edits may be of one
        rows = self.tokenizer.reconstruct(self.tokenizer.tokenize(list(distinct.values())))
        place = {name: number for number, name in enumerate(distinct)}
        own = rows[[place[id(picture)] for picture in pictures]]  # (B, N, F)
        new = self.tokenizer.reconstruct(tokens)  # (B, N, F)
        if self.tokenizer.places_codes:
            before, after = self.tokenizer.pixels_in(own), self.tokenizer.pixels_in(new)
            assert before is not None
            assert after is not None
            stays = cell_errors(after, before, self.tokenizer.grid[0]).sqrt() < SAME_PIXELS  # (B, N)
        else:
            stays = F.cosine_similarity(new, own, dim=-1) > ALIKE
        pixels = [torch.from_numpy(fit_square(load_image(one), self.decoder.side)) for one in pictures]
        return [Source(*each) for each in zip(pixels, stays.cpu(), strict=True)]


def reconstructs_pixels(folder: str | Path) -> bool:
    """Whether the tokenizer of a model folder places its codes, by its settings alone; False without one."""
    from pictish.tokenizer.config import read_tokenizer_config

    try:
        return read_tokenizer_config(folder)[0].places_codes
    except ValueError:
        return False


def shape_of(token: TokenizedImage, size: int) -> tuple[int, int]:
    """(width, height) in pixels of an image with the original's aspect ratio and a longer side of `size`."""
    height, width = token.size
    longer = max(height, width)
    return max(1, round(size * width / longer)), max(1, round(size * height / longer))
