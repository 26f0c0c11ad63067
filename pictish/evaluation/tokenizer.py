"""How good a tokenizer is: quality against token count, and its selection against random and uniform ones.

Legend: B pictures of a batch, P of a set, S the tokenizer's side in pixels, N cells, F features, M metrics.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pictish.evaluation.baselines import random_cells, uniform_cells
from pictish.evaluation.metrics import LEVEL, Better, CodeStatistics, FeatureDistance, gain, means, psnr, ssim
from pictish.evaluation.pictures import Broken, Picture, Prepared, in_batches, prepare, stacked

if TYPE_CHECKING:
    import torch

    from pictish.data.tokens import TokenizedImage
    from pictish.decoder.preview import Preview
    from pictish.tokenizer.dynamic import Tokenizer

SCHEMA = 1
BUDGETS = (4, 8, 16, 32, 64)
METRICS: dict[str, Better] = {
    "cosine_loss": "lower",
    "psnr": "higher",
    "ssim": "higher",
    "feature_distance": "lower",
}
"""Name in the report -> which way is better."""


@dataclass
class Point:
    """One way of selecting patches, measured on every picture of a set."""

    selection: Literal["budget", "automatic", "random", "uniform"]
    codes: CodeStatistics
    budget: int | None = None
    rows: list[np.ndarray] = field(default_factory=list)

    @property
    def values(self) -> np.ndarray:
        """(P, M), metrics in the order of METRICS."""
        return np.concatenate(self.rows)


@dataclass
class PictureSet:
    """What was measured on one set; the points are `4`, `8`, ..., `automatic`, `random`, `uniform`."""

    name: str
    points: dict[str, Point]
    pictures: list[tuple[int, str]] = field(default_factory=list)
    """(index in the source, name) of each measured picture."""
    broken: list[Broken] = field(default_factory=list)


class Evaluation:
    """Measures sets of pictures with one tokenizer, its preview head and a feature distance."""

    def __init__(
        self, tokenizer: "Tokenizer", preview: "Preview", distance: FeatureDistance, *, seed: int
    ) -> None:
        self.tokenizer = tokenizer
        self.preview = preview
        self.distance = distance
        self.seed = seed
        cells = tokenizer.grid[0] * tokenizer.grid[1]
        self.budgets = tuple(budget for budget in BUDGETS if budget <= cells)

    def measure(
        self,
        name: str,
        pictures: Iterable[Picture | Broken],
        advance: Callable[[int], None] = lambda count: None,
    ) -> PictureSet:
        """Measure every picture; broken ones are listed and skipped. ValueError when none is left.

        `advance` is told how many more were measured.
        """
        result = PictureSet(name, self._points())
        for batch in in_batches(name, pictures, result.broken, self.prepare):
            self._measure_batch(batch, result)
            result.pictures += [(picture.index, picture.name) for picture in batch]
            advance(len(batch))
        return result

    def reconstructions(self, pictures: Sequence[Prepared]) -> list[dict[str, np.ndarray]]:
        """Previews (side, side, 3) uint8 of each picture, by point: the automatic length and each budget."""
        pixels = stacked(pictures)
        sizes = [picture.size for picture in pictures]
        decoded: list[dict[str, np.ndarray]] = [{} for _ in pictures]
        for name in ("automatic", *map(str, self.budgets)):
            budget = None if name == "automatic" else int(name)
            images = self._decode(self.tokenizer.tokenize_pixels(pixels, sizes, budget=budget))
            for row, image in zip(decoded, images, strict=True):
                row[name] = image
        return decoded

    def prepare(self, picture: Picture) -> Prepared:
        """Squash a picture to the sides that the tokenizer and the preview work at."""
        return prepare(picture, self.tokenizer.squash, self.preview.side)

    def report(self, sets: Sequence[PictureSet]) -> dict[str, Any]:
        """Everything measured, JSON-ready; without time, path or device, so a second run gives the same."""
        return {
            "schema": SCHEMA,
            "tokenizer": self.tokenizer.fingerprint,
            "codebook_size": self.tokenizer.codebook_size,
            "grid": list(self.tokenizer.grid),
            "preview_side": self.preview.side,
            "feature_network": FeatureDistance.NETWORK,
            "seed": self.seed,
            "confidence": LEVEL,
            "better": dict(METRICS),
            "sets": [self._report_set(each) for each in sets],
        }

    def _points(self) -> dict[str, Point]:
        def codes() -> CodeStatistics:
            return CodeStatistics(self.tokenizer.codebook_size, self.tokenizer.fingerprint)

        points = {str(budget): Point("budget", codes(), budget) for budget in self.budgets}
        points["automatic"] = Point("automatic", codes())
        points["random"] = Point("random", codes())
        points["uniform"] = Point("uniform", codes())
        return points

    def _measure_batch(self, batch: Sequence[Prepared], result: PictureSet) -> None:
        pixels, sizes = stacked(batch), [picture.size for picture in batch]
        features = self.tokenizer.features(pixels)  # (B, N, F)
        originals = np.stack([picture.original for picture in batch])
        original_features = self.distance.features(originals)
        lengths: list[int] = []
        for name, point in result.points.items():  # `automatic` comes before its baselines
            learned = point.selection in ("budget", "automatic")
            keep = None if learned else self._baseline(name, lengths, batch)
            tokens = self.tokenizer.tokenize_pixels(pixels, sizes, budget=point.budget, keep=keep)
            if name == "automatic":
                lengths = [len(token) for token in tokens]
            previews = self._decode(tokens)
            scores = [
                cosine_losses(features, self.tokenizer.reconstruct(tokens)),
                psnr(previews, originals),
                ssim(previews, originals),
                self.distance.compare(self.distance.features(previews), original_features),
            ]
            point.rows.append(np.stack(scores, axis=1))
            for token in tokens:
                point.codes.add(token)

    def _baseline(self, name: str, lengths: Sequence[int], batch: Sequence[Prepared]) -> "torch.Tensor":
        """Keep masks (B, N) bool with as many cells for each picture as the learned selection kept."""
        import torch

        grid = self.tokenizer.grid
        masks = [
            random_cells(grid, length, self.seed, each.name)
            if name == "random"
            else uniform_cells(grid, length)
            for length, each in zip(lengths, batch, strict=True)
        ]
        return torch.from_numpy(np.stack(masks))

    def _decode(self, tokens: "Sequence[TokenizedImage]") -> np.ndarray:
        return self.preview.decode(tokens).cpu().numpy()

    def _report_set(self, measured: PictureSet) -> dict[str, Any]:
        points = measured.points
        learned = points["automatic"]
        return {
            "name": measured.name,
            "pictures": len(measured.pictures),
            "broken": [{"name": each.name, "error": each.error} for each in measured.broken],
            "budgets": [self._report_point(points[str(budget)]) for budget in self.budgets],
            "automatic": self._report_point(learned),
            "baselines": {name: self._report_point(points[name]) for name in ("random", "uniform")},
            "gain_over": {
                name: means(gain(learned.values, points[name].values, METRICS), METRICS, self.seed)
                for name in ("random", "uniform")
            },
        }

    def _report_point(self, point: Point) -> dict[str, Any]:
        summary = point.codes.summary()
        shown = ("tokens", "codes_used", "dead_codes", "usage", "perplexity", "bits_per_pixel")
        return {
            "selection": point.selection,
            "budget": point.budget,
            **{key: summary[key] for key in shown},
            **means(point.values, METRICS, self.seed),
        }


def cosine_losses(features: "torch.Tensor", predicted: "torch.Tensor") -> np.ndarray:
    """1 - cosine between features and their reconstruction, both (B, N, F), mean over cells; (B,)."""
    from torch.nn import functional

    cosine = functional.cosine_similarity(features.float(), predicted.float(), dim=-1)  # (B, N)
    return (1 - cosine.double().mean(dim=1)).cpu().numpy()
