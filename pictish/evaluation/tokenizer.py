"""How good a tokenizer is: quality against token count, and its selection against random and uniform ones.

Legend: B pictures of a batch, P of a set, S the tokenizer's side in pixels, N cells, F features, M metrics.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pictish.evaluation.baselines import random_cells, uniform_cells
from pictish.evaluation.metrics import CodeStatistics, FeatureDistance, bootstrap, psnr, ssim
from pictish.evaluation.pictures import Broken, Picture

if TYPE_CHECKING:
    import torch

    from pictish.data.tokens import TokenizedImage
    from pictish.decoder.preview import Preview
    from pictish.tokenizer.dynamic import Tokenizer

SCHEMA = 1
BUDGETS = (4, 8, 16, 32, 64)
BATCH = 32
LEVEL = 0.95
METRICS: dict[str, Literal["lower", "higher"]] = {
    "cosine_loss": "lower",
    "psnr": "higher",
    "ssim": "higher",
    "feature_distance": "lower",
}
"""Name in the report -> which way is better."""


@dataclass(frozen=True)
class Prepared:
    """What is kept of a picture until its batch is full: two small squares, not its own pixels."""

    index: int
    name: str
    size: tuple[int, int]
    """(height, width) of the original, pixels."""
    pixels: np.ndarray
    """(S, S, 3) uint8, what the tokenizer sees."""
    original: np.ndarray
    """(side, side, 3) uint8, what the preview is compared with."""


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

    def extremes(self, each: int = 3) -> dict[str, list[int]]:
        """Positions of the best, median and worst pictures by cosine loss at the automatic length."""
        order = np.argsort(self.points["automatic"].values[:, 0], kind="stable")
        groups: Sequence[np.ndarray] = np.array_split(order, 3)
        if len(order) > 3 * each:
            middle = (len(order) - each) // 2
            groups = [order[:each], order[middle : middle + each], order[-each:]]
        return {
            name: [int(place) for place in group]
            for name, group in zip(("best", "median", "worst"), groups, strict=True)
        }


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
        advance: Callable[[], None] = lambda: None,
    ) -> PictureSet:
        """Measure every picture; broken ones are listed and skipped. ValueError when none is left.

        `advance` is called once for each picture measured.
        """
        result = PictureSet(name, self._points())
        for batch in self._batches(pictures, result.broken, advance):
            self._measure_batch(batch, result)
            result.pictures += [(picture.index, picture.name) for picture in batch]
        if not result.pictures:
            broken = f", {len(result.broken)} could not be read" if result.broken else ""
            raise ValueError(f"nothing to evaluate in {name}: no readable picture{broken}")
        return result

    def reconstructions(self, pictures: Sequence[Prepared]) -> list[dict[str, np.ndarray]]:
        """Previews (side, side, 3) uint8 of each picture, by point: the automatic length and each budget."""
        pixels = _stack(pictures)
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
        from pictish.data.images import fit_square

        pixels = fit_square(picture.image, self.tokenizer.image_size)
        original = fit_square(picture.image, self.preview.side)
        size = (picture.image.height, picture.image.width)
        return Prepared(picture.index, picture.name, size, pixels, original)

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

    def _batches(
        self, pictures: Iterable[Picture | Broken], broken: list[Broken], advance: Callable[[], None]
    ) -> Iterator[list[Prepared]]:
        """Batches of readable pictures, the others go to `broken`; `advance` is called for each one done."""
        batch: list[Prepared] = []
        for each in pictures:
            if isinstance(each, Broken):
                broken.append(each)
                continue
            batch.append(self.prepare(each))
            if len(batch) == BATCH:
                yield batch
                for _ in batch:
                    advance()
                batch = []
        if batch:
            yield batch
            for _ in batch:
                advance()

    def _measure_batch(self, batch: Sequence[Prepared], result: PictureSet) -> None:
        pixels, sizes = _stack(batch), [picture.size for picture in batch]
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
                name: _means(gain(learned.values, points[name].values), self.seed)
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
            **_means(point.values, self.seed),
        }


def cosine_losses(features: "torch.Tensor", predicted: "torch.Tensor") -> np.ndarray:
    """1 - cosine between features and their reconstruction, both (B, N, F), mean over cells; (B,)."""
    from torch.nn import functional

    cosine = functional.cosine_similarity(features.float(), predicted.float(), dim=-1)  # (B, N)
    return (1 - cosine.double().mean(dim=1)).cpu().numpy()


def gain(learned: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """By how much each picture is better with the learned selection, (P, M): positive always means better."""
    signs = np.array([1.0 if better == "higher" else -1.0 for better in METRICS.values()])
    return (learned - baseline) * signs


def _means(values: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    return dict(zip(METRICS, bootstrap(values, seed, level=LEVEL), strict=True))


def _stack(pictures: Sequence[Prepared]) -> "torch.Tensor":
    import torch

    return torch.from_numpy(np.stack([picture.pixels for picture in pictures]))


def rounded(value: Any) -> Any:
    """`value` with every float at six significant digits, for a JSON file that people read and compare."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case Mapping():
            return {key: rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [rounded(each) for each in value]
    return value
