"""How good a tokenizer is: quality against token count, and its selection against simpler ones.

Legend: B images of a batch, P of a set, S the tokenizer's side in pixels, N cells, M metrics.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pictish.evaluation.baselines import computed_cells, random_cells, uniform_cells
from pictish.evaluation.metrics import LEVEL, Better, CodeStatistics, FeatureDistance, gain, means, psnr, ssim
from pictish.evaluation.pictures import Broken, Picture, Prepared, in_batches, prepare, stacked
from pictish.evaluation.renderers import Renderer
from pictish.evaluation.thumbnails import thumbnail

if TYPE_CHECKING:
    import torch

    from pictish.data.tokens import TokenizedImage
    from pictish.tokenizer.dynamic import Tokenizer

SCHEMA = 3
Selection = Literal["budget", "automatic", "computed", "random", "uniform", "thumbnail"]
SELECTIONS: tuple[Selection, ...] = ("computed", "random", "uniform")
"""Baselines: as many cells of each image as the learned selection keeps, chosen otherwise."""
THUMBNAIL: Selection = "thumbnail"
"""Baseline: an image of few plain pixels, of as many bits as the codes and their cells."""
METRICS: dict[str, Better] = {
    "psnr": "higher",
    "ssim": "higher",
    "feature_distance": "lower",
}
"""Name in the report -> which way is better."""


@dataclass
class Point:
    """One way of selecting patches, measured on every image of a set; a thumbnail has no codes."""

    selection: Selection
    codes: CodeStatistics
    budget: int | None = None
    bits: list[float] = field(default_factory=list)
    """Of each image: of its codes and their cells, or what a thumbnail may take."""
    rows: list[np.ndarray] = field(default_factory=list)

    @property
    def values(self) -> np.ndarray:
        """(P, M), metrics in the order of METRICS."""
        return np.concatenate(self.rows)


@dataclass
class PictureSet:
    """What was measured on one set; the points are `4`, `8`, ..., `automatic`, SELECTIONS and `thumbnail`."""

    name: str
    points: dict[str, Point]
    pictures: list[tuple[int, str]] = field(default_factory=list)
    """(index in the source, name) of each measured image."""
    broken: list[Broken] = field(default_factory=list)


def budgets_of(cells: int) -> tuple[int, ...]:
    """Numbers of codes to measure in a grid of `cells`: powers of two from 4, and 27, 96 and all."""
    powers = (2**power for power in range(2, cells.bit_length()))
    return tuple(sorted({*(budget for budget in (*powers, 27, 96) if budget <= cells), cells}))


class Evaluation:
    """Measures sets of images with one tokenizer, what renders its codes, and a feature distance."""

    def __init__(
        self, tokenizer: "Tokenizer", renderer: Renderer, distance: FeatureDistance, *, seed: int
    ) -> None:
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.distance = distance
        self.seed = seed
        self.budgets = budgets_of(tokenizer.grid[0] * tokenizer.grid[1])

    def measure(
        self,
        name: str,
        pictures: Iterable[Picture | Broken],
        advance: Callable[[int], None] = lambda count: None,
    ) -> PictureSet:
        """Measure every image; broken ones are listed and skipped. ValueError when none is left.

        `advance` receives how many more were measured.
        """
        result = PictureSet(name, self._points())
        for batch in in_batches(name, pictures, result.broken, self.prepare):
            self._measure_batch(batch, result)
            result.pictures += [(picture.index, picture.name) for picture in batch]
            advance(len(batch))
        return result

    def reconstructions(self, pictures: Sequence[Prepared]) -> list[dict[str, np.ndarray]]:
        """Images (side, side, 3) uint8 of each, by point: `automatic`, `thumbnail` and each budget."""
        pixels, sizes = stacked(pictures), [picture.size for picture in pictures]
        automatic = self.tokenizer.tokenize_pixels(pixels, sizes)
        ways = {"automatic": self._decode(automatic)}
        ways[THUMBNAIL] = _thumbnails(pictures, [token.bits for token in automatic])
        for budget in self.budgets:
            ways[str(budget)] = self._decode(self.tokenizer.tokenize_pixels(pixels, sizes, budget=budget))
        return [dict(zip(ways, images, strict=True)) for images in zip(*ways.values(), strict=True)]

    def prepare(self, picture: Picture) -> Prepared:
        """Squash an image to the sides that the tokenizer and the renderer work at."""
        return prepare(picture, self.tokenizer.resize, self.renderer.side)

    def report(self, sets: Sequence[PictureSet]) -> dict[str, Any]:
        """Everything measured, JSON-ready; without time, path or device, so a second run gives the same."""
        return {
            "schema": SCHEMA,
            "tokenizer": self.tokenizer.fingerprint,
            "codebook_size": self.tokenizer.codebook_size,
            "grid": list(self.tokenizer.grid),
            "side": self.renderer.side,
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
        points |= {name: Point(name, codes()) for name in (*SELECTIONS, THUMBNAIL)}
        return points

    def _measure_batch(self, batch: Sequence[Prepared], result: PictureSet) -> None:
        pixels, sizes = stacked(batch), [picture.size for picture in batch]
        originals = np.stack([picture.original for picture in batch])
        original_features = self.distance.features(originals)
        automatic: Sequence[TokenizedImage] = []
        for name, point in result.points.items():  # `automatic` comes before its baselines
            if name == THUMBNAIL:
                bits = [token.bits for token in automatic]
                pictures = _thumbnails(batch, bits)
            else:
                keep = self._baseline(name, automatic, batch) if name in SELECTIONS else None
                tokens = self.tokenizer.tokenize_pixels(pixels, sizes, budget=point.budget, keep=keep)
                if name == "automatic":
                    automatic = tokens
                for token in tokens:
                    point.codes.add(token)
                bits, pictures = [token.bits for token in tokens], self._decode(tokens)
            scores = [
                psnr(pictures, originals),
                ssim(pictures, originals),
                self.distance.compare(self.distance.features(pictures), original_features),
            ]
            point.rows.append(np.stack(scores, axis=1))
            point.bits += bits

    def _baseline(
        self, name: str, automatic: "Sequence[TokenizedImage]", batch: Sequence[Prepared]
    ) -> "torch.Tensor":
        """Keep masks (B, N) bool with as many cells for each image as the learned selection kept."""
        import torch

        grid = self.tokenizer.grid
        masks = []
        for number, each in zip(map(len, automatic), batch, strict=True):
            match name:
                case "computed":
                    masks.append(computed_cells(grid, number, each.pixels))
                case "random":
                    masks.append(random_cells(grid, number, self.seed, each.name))
                case _:
                    masks.append(uniform_cells(grid, number))
        return torch.from_numpy(np.stack(masks))

    def _decode(self, tokens: "Sequence[TokenizedImage]") -> np.ndarray:
        return self.renderer.decode(tokens).cpu().numpy()

    def _report_set(self, measured: PictureSet) -> dict[str, Any]:
        points = measured.points
        learned = points["automatic"]
        return {
            "name": measured.name,
            "pictures": len(measured.pictures),
            "broken": [{"name": each.name, "error": each.error} for each in measured.broken],
            "budgets": [self._report_point(points[str(budget)]) for budget in self.budgets],
            "automatic": self._report_point(learned),
            "baselines": {name: self._report_point(points[name]) for name in SELECTIONS},
            THUMBNAIL: {
                "bits": float(np.mean(points[THUMBNAIL].bits)),
                **means(points[THUMBNAIL].values, METRICS, self.seed),
            },
            "gain_over": {
                name: means(gain(learned.values, points[name].values, METRICS), METRICS, self.seed)
                for name in (*SELECTIONS, THUMBNAIL)
            },
        }

    def _report_point(self, point: Point) -> dict[str, Any]:
        summary = point.codes.summary()
        shown = ("tokens", "codes_used", "dead_codes", "usage", "perplexity", "bits_per_pixel")
        return {
            "selection": point.selection,
            "budget": point.budget,
            "bits": float(np.mean(point.bits)),
            **{key: summary[key] for key in shown},
            **means(point.values, METRICS, self.seed),
        }


def _thumbnails(pictures: Sequence[Prepared], bits: Sequence[float]) -> np.ndarray:
    """Thumbnails (B, side, side, 3) uint8 of at most `bits` each."""
    pairs = zip(pictures, bits, strict=True)
    return np.stack([thumbnail(picture.original, most) for picture, most in pairs])
