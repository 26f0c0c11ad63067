"""A language model's sight: how it looks at images, and the rows that these become among its embeddings.

Legend: V views, S their side in pixels, D width of the language model, M rows of all images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from pictish.lm.vision.config import ResamplerProjector, VisionConfig
from pictish.lm.vision.projectors import build_projector, cells_behind
from pictish.lm.vision.tiles import (
    Layout,
    Seen,
    arrange,
    best_grid,
    frame_layout,
    grids,
    padded,
    squashed,
    tiled,
    tiled_layout,
)
from pictish.lm.vision.tower import VisionEncoder, resolved


class Placed(NamedTuple):
    """An image's views in packed rows: its first row's place, and how its rows are laid out."""

    row: int
    column: int
    views: Tensor  # uint8 (V, S, S, 3)
    layout: Layout


class Vision(nn.Module):
    """A vision tower, the projector behind it, and the learned row that ends lines of an image."""

    def __init__(self, config: VisionConfig, width: int):
        super().__init__()
        self.encoder = VisionEncoder(config)
        self.config = resolved(config, self.encoder)
        self.projector = build_projector(config.projector, self.encoder.features, width, self.encoder.cells)
        self.cells = cells_behind(config.projector, self.encoder.cells)
        self.separator = nn.Parameter(torch.randn(width) / width**0.5)

    def look(self, image: Image.Image, *, alone: bool = True, tiles: bool = True) -> Seen:
        """An RGB image as the tower looks at it.

        In tiles where the settings have them, unless there are other images beside it: then it is padded
        to a square. Without `tiles` it is squashed to one view.
        """
        side, settings = self.encoder.side, self.config.tiles
        if settings is None or not tiles:
            return Seen(squashed(image, side), Layout(self.cells))
        if not alone:
            return Seen(padded(image, side, self.config.mean), Layout(self.cells, ended=True))
        choices = settings.grids or grids(settings.wide, settings.high)
        grid = best_grid(image.size, choices, side)
        return Seen(tiled(image, grid, side), tiled_layout(image.size, grid, self.cells, settings.largest))

    def watch(self, frames: Sequence[Image.Image]) -> list[Seen]:
        """Frames of a video as the tower looks at them, one after the other."""
        layout = frame_layout(self.cells, self.config.pool)
        if isinstance(self.config.projector, ResamplerProjector):
            layout = Layout(self.cells)
        return [Seen(squashed(frame, self.encoder.side), layout) for frame in frames]

    def forward(self, pictures: Sequence[Placed]) -> Tensor:
        """Rows (M, D) of all images, one after the other."""
        projected = self.projector(self.encoder(torch.cat([one.views for one in pictures])))
        parts = projected.split([one.layout.views for one in pictures])
        return torch.cat(
            [arrange(part, one.layout, self.separator) for part, one in zip(parts, pictures, strict=True)]
        )


def places_of(pictures: Sequence[Placed]) -> Tensor:
    """Row and column (2, M) of each of the rows that `Vision` makes of these images."""
    return torch.cat(
        [
            torch.stack(
                [
                    torch.full((one.layout.length,), one.row),
                    torch.arange(one.column, one.column + one.layout.length),
                ]
            )
            for one in pictures
        ],
        dim=1,
    )
