"""What tokenizers and decoders are trained and judged by: pixels, and the features of a frozen network.

Legend: B images, S side in pixels, N cells, F feature channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.tokenizer.config import TeacherConfig
from pictish.tokenizer.encoder import Encoder


def pixel_loss(pictures: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """A scalar of absolute and squared errors and of those of neighbour differences, and the squared error.

    Of images (B, 3, S, S) in [0, 1]. Differences of neighbours keep edges where a mean would blur them.
    """
    error = pictures.float() - originals.float()
    mse = error.square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * mse + 0.5 * edges, mse


class Teacher:
    """A frozen network whose features codes are trained to give back, and that tells images apart.

    It is no part of the tokenizer and not needed where that is used.
    """

    def __init__(self, config: TeacherConfig, device: torch.device):
        self.config = config
        self.encoder = Encoder(config.encoder).to(device)
        self._every_depth = self.encoder.at_all_levels()

    @property
    def rows(self) -> slice:
        """Which images of a batch it looks at: evenly spaced, the same ones however processes divide it."""
        return slice(None, None, round(1 / self.config.fraction))

    def fit(self, pictures: Tensor) -> None:
        """Take the statistics of its features from images (B, 3, S, S) in [0, 1]."""
        self.encoder.fit_to_raw(self._raw(part) for part in pictures.split(32))

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Standardised features (B, N, F) of images (B, 3, S, S) in [0, 1]."""
        with torch.autocast(pictures.device.type, enabled=False):
            return self.encoder.standardise(self._raw(pictures))

    def distance(self, pictures: Tensor, originals: Tensor, shift: tuple[int, int]) -> Tensor:
        """Mean distance of images (B, 3, S, S) from `originals` in its maps, both shifted by some pixels.

        Its strided convolutions look at some pixels more than at others; where the same ones are favoured at
        every step, images get a visible grid.
        """
        moved = [torch.roll(each, shift, dims=(2, 3)) for each in (pictures, originals)]
        with torch.no_grad():
            theirs = self.levels(moved[1])
        return map_distances(self.levels(moved[0]), theirs).mean()

    def levels(self, pictures: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w) at all depths, at the images' own size; gradients flow to them."""
        with torch.autocast(pictures.device.type, enabled=False):  # depthwise convolutions are slow in bf16
            return self._every_depth.levels(pictures.float())

    @torch.no_grad()
    def _raw(self, pictures: Tensor) -> Tensor:
        side = self.encoder.config.image_size
        return self.encoder.raw_of(
            F.interpolate(pictures, size=(side, side), mode="bilinear", align_corners=False)
        )


def cosine_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity of each cell's features (B, N), of (B, N, F) twice (arXiv 2309.04669, eq. 5)."""
    return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)


def map_distances(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Distances (B,) of images by a network's maps (B, C, h, w) at several scales: 0 to 4.

    The form of LPIPS (arXiv 1801.03924) without its learned weights: channels are brought to unit length, the
    squared difference is summed over them and averaged over positions, then over scales.
    """
    scales = [
        (F.normalize(one.float(), dim=1) - F.normalize(other.float(), dim=1)).square().sum(1).mean((1, 2))
        for one, other in zip(ours, theirs, strict=True)
    ]
    return torch.stack(scales).mean(dim=0)
