"""How good a decoder is: its images against originals, beside other ways to spend the same codes.

Legend: P images of a set, S the side in pixels at which they are compared, the decoder's own unless an
upscaler comes behind it, M metrics, F features of the network.
"""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pictish.decoder.schedulers import fitting
from pictish.evaluation.distributions import frechet_distance, kernel_distance
from pictish.evaluation.metrics import LEVEL, Better, FeatureDistance, gain, means, psnr, ssim
from pictish.evaluation.pictures import BATCH, Broken, Picture, in_batches, prepare, resized, seed_of, stacked
from pictish.evaluation.thumbnails import thumbnail

if TYPE_CHECKING:
    from pictish.data.tokens import TokenizedImage
    from pictish.decoder.preview import Preview
    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.pipelines.settings import Drawing

SCHEMA = 2
METRICS: dict[str, Better] = {"psnr": "higher", "ssim": "higher", "feature_distance": "lower"}
"""Of each image; name in the report -> which way is better."""
DECODER, PREVIEW, THUMBNAIL, MEAN = "decoder", "preview", "thumbnail", "mean image"
UPSCALED = "decoder, upscaled"
STEPS = (1, 2, 4, 8, 16, 32, 50)
"""Of the curve."""


@dataclass(frozen=True)
class Coded:
    """Images of a set as codes, and as a decoder that loses nothing would draw them."""

    name: str
    names: list[str]
    tokens: "list[TokenizedImage]"
    originals: np.ndarray
    """(P, S, S, 3) uint8; of a whole set in a temporary file, mapped into memory."""
    broken: list[Broken]

    def part(self, places: Sequence[int]) -> "Coded":
        """The images at these places alone."""
        names = [self.names[place] for place in places]
        tokens = [self.tokens[place] for place in places]
        return Coded(self.name, names, tokens, self.originals[list(places)], [])

    def batches(self) -> Iterator["Coded"]:
        """All images, at most `BATCH` at a time."""
        places = range(len(self.names))
        for start in places[::BATCH]:
            yield self.part(places[start : start + BATCH])


Way = Callable[[Coded], np.ndarray]
"""Draws every image of a set, (P, S, S, 3) uint8."""


Name = TypeVar("Name", str, tuple[str, int])


@dataclass(frozen=True)
class Measured:
    """One way of drawing, measured on a set."""

    values: np.ndarray
    """(P, M), in the order of METRICS."""
    fid_small: float | None
    kid: dict[str, float] | None

    @property
    def distances(self) -> np.ndarray:
        """Feature distances (P,)."""
        return self.values[:, list(METRICS).index("feature_distance")]


class DecoderEvaluation:
    """Measures sets of images with one diffusion decoder, its preview head if it has one, and a distance.

    Images are drawn as `pictish detokenize` draws them: what `drawing` leaves open is the decoder's default
    for reconstruction. Only with `drawing.upscale` above 1 is the upscaler used: images are then compared
    at this multiple of the decoder's side, those that went through it beside the same ones resized.
    ValueError for a model without a diffusion decoder, and for a scheduler or a factor that does not fit.
    """

    metrics = METRICS

    def __init__(
        self,
        reconstructor: "Reconstructor",
        preview: "Preview | None",
        distance: FeatureDistance,
        drawing: "Drawing",
        *,
        seed: int,
    ) -> None:
        if reconstructor.decoder is None:
            raise ValueError("this model has no diffusion decoder to evaluate")
        self.reconstructor, self.decoder = reconstructor, reconstructor.decoder
        self.preview, self.distance, self.seed = preview, distance, seed
        self.upscale = drawing.upscale or 1
        # settled, and refused, now rather than after an hour
        self.drawing = reconstructor.settled(replace(drawing, upscale=self.upscale))
        self.side = self.decoder.side * self.upscale

    def code(
        self,
        name: str,
        pictures: Iterable[Picture | Broken],
        advance: Callable[[int], None] = lambda count: None,
    ) -> Coded:
        """Tokenize every image; broken ones are listed and skipped. ValueError when none is left.

        `advance` receives how many more are done.
        """
        tokenizer = self.reconstructor.tokenizer
        names: list[str] = []
        tokens: list[TokenizedImage] = []
        broken: list[Broken] = []
        fit = functools.partial(prepare, resize=tokenizer.resize, decoder_side=self.side)
        with tempfile.TemporaryFile() as file:  # memory does not grow with the set
            for batch in in_batches(name, pictures, broken, fit):
                tokens += tokenizer.tokenize_pixels(stacked(batch), [each.size for each in batch])
                names += [each.name for each in batch]
                file.write(np.stack([each.original for each in batch]).tobytes())
                advance(len(batch))
            file.flush()
            originals = np.memmap(file, np.uint8, "r", shape=(len(names), self.side, self.side, 3))
        return Coded(name, names, tokens, originals, broken)

    def ways(self, coded: Coded) -> dict[str, Way]:
        """The preview, the baselines and the decoder itself, in the order they are shown."""
        mean = coded.originals.mean(axis=0).round().astype(np.uint8)
        return {
            **self._preview(),
            THUMBNAIL: as_thumbnails,
            MEAN: lambda part: np.broadcast_to(mean, part.originals.shape),
            DECODER: self._diffusion(replace(self.drawing, upscale=1)),
            **({UPSCALED: self._diffusion(self.drawing)} if self.upscale > 1 else {}),
        }

    def curve_ways(self) -> dict[tuple[str, int], Way]:
        """The decoder at `STEPS` steps with its scheduler and the first other one that fits, if any does."""
        noise = self.decoder.model.config.noise
        own = self.drawing.scheduler
        others = [name for name in fitting(noise) if name != own]
        return {
            (scheduler or noise.kind, steps): self._diffusion(
                replace(self.drawing, scheduler=scheduler, steps=steps)
            )
            for scheduler in (own, *others[:1])
            for steps in STEPS
        }

    def measure(
        self,
        coded: Coded,
        ways: Mapping[Name, Way],
        advance: Callable[[int], None] = lambda count: None,
    ) -> dict[Name, Measured]:
        """Draw a set in every way and compare it with its originals.

        `advance` receives how many more images were drawn, of len(coded.names) times len(ways).
        """
        real: list[np.ndarray] = []
        values: dict[Name, list[np.ndarray]] = {name: [] for name in ways}
        pooled: dict[Name, list[np.ndarray]] = {name: [] for name in ways}
        for batch in coded.batches():
            originals = self.distance.features(batch.originals)
            real.append(self.distance.pooled(batch.originals))
            for name, way in ways.items():
                drawn = way(batch)
                scores = (
                    psnr(drawn, batch.originals),
                    ssim(drawn, batch.originals),
                    self.distance.compare(self.distance.features(drawn), originals),
                )
                values[name].append(np.stack(scores, axis=1))
                pooled[name].append(self.distance.pooled(drawn))
                advance(len(drawn))
        theirs = np.concatenate(real)  # (P, F)
        ours = {name: np.concatenate(features) for name, features in pooled.items()}
        return {
            name: Measured(
                np.concatenate(values[name]),
                frechet_distance(ours[name], theirs),
                kernel_distance(ours[name], theirs, self.seed),
            )
            for name in ways
        }

    def curve(
        self,
        coded: Coded,
        ways: Mapping[tuple[str, int], Way],
        advance: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Any]:
        """A set's numbers and seconds at every step count, JSON-ready; the preview's, if any, beside them."""
        measured = self.measure(coded, ways, advance)
        preview = {
            name: self._report_way(each) | {"seconds": seconds_alone(self._preview()[name], coded)}
            for name, each in self.measure(coded, self._preview()).items()
        }
        points = [
            {
                "scheduler": scheduler,
                "steps": steps,
                "seconds": seconds_alone(ways[scheduler, steps], coded),
                **self._report_way(each),
            }
            for (scheduler, steps), each in measured.items()
        ]
        return {**_about(coded), "points": points, "preview": preview.get(PREVIEW)}

    def header(self) -> dict[str, Any]:
        """What a report says first; its `sets` are still empty."""
        return {
            "schema": SCHEMA,
            "tokenizer": self.reconstructor.tokenizer.fingerprint,
            "decoder": self.decoder.fingerprint,
            "side": self.side,
            "upscale": self.upscale,
            "upscaler": self.reconstructor.upscaler_of(self.drawing),
            "steps": self.drawing.steps,
            "guidance": self.drawing.guidance,
            "scheduler": self.drawing.scheduler,
            "feature_network": FeatureDistance.NETWORK,
            "seed": self.seed,
            "confidence": LEVEL,
            "better": {**METRICS, "fid_small": "lower", "kid": "lower"},
            "sets": [],
        }

    def report_set(self, coded: Coded, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """A set's numbers, JSON-ready; without time, path or device, so a second run gives the same."""
        ours = measured[DECODER].values
        return {
            **_about(coded),
            "ways": {name: self._report_way(each) for name, each in measured.items()},
            "gain_over": {
                name: means(gain(ours, each.values, METRICS), METRICS, self.seed)
                for name, each in measured.items()
                if name != DECODER
            },
        }

    def _report_way(self, measured: Measured) -> dict[str, Any]:
        return {
            **means(measured.values, METRICS, self.seed),
            "fid_small": measured.fid_small,
            "kid": measured.kid,
        }

    def _diffusion(self, drawing: "Drawing") -> Way:
        def draw(coded: Coded) -> np.ndarray:
            import torch

            # an image's noise depends on the seed and its name alone
            noise = [torch.Generator().manual_seed(seed_of(self.seed, name)) for name in coded.names]
            return resized(self.reconstructor.pixels(coded.tokens, drawing, noise), self.side)

        return draw

    def _preview(self) -> dict[str, Way]:
        """The preview head as a way; none without one."""
        if self.preview is None:
            return {}
        decode = self.preview.decode
        return {PREVIEW: lambda coded: resized(decode(coded.tokens).numpy(), self.side)}


def as_thumbnails(coded: Coded) -> np.ndarray:
    """Thumbnails of at most as many bits as each image's codes, (P, S, S, 3) uint8."""
    pairs = zip(coded.originals, coded.tokens, strict=True)
    return np.stack([thumbnail(original, token.bits) for original, token in pairs])


def seconds_alone(way: Way, coded: Coded, times: int = 3) -> float:
    """Seconds to draw the first image by itself, the median of `times` after one that is not counted."""
    one = coded.part([0])
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        way(one)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def _about(coded: Coded) -> dict[str, Any]:
    return {
        "name": coded.name,
        "pictures": len(coded.names),
        "broken": [{"name": each.name, "error": each.error} for each in coded.broken],
        "tokens": float(np.mean([len(token) for token in coded.tokens])),
        "bits": float(np.mean([token.bits for token in coded.tokens])),
    }
