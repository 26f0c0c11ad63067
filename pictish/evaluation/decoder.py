"""How good a decoder is: its pictures against originals, beside other ways to spend the same codes.

Legend: P pictures of a set, S the side in pixels at which they are compared, the decoder's own unless an
upscaler comes behind it, M metrics, F features of the network.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from pictish.decoder.schedulers import fitting
from pictish.evaluation.distributions import frechet_distance, kernel_distance
from pictish.evaluation.metrics import LEVEL, Better, FeatureDistance, gain, means, psnr, ssim
from pictish.evaluation.pictures import BATCH, Broken, Picture, in_batches, prepare, seed_of, stacked
from pictish.evaluation.thumbnails import thumbnail

if TYPE_CHECKING:
    from pictish.data.tokens import TokenizedImage
    from pictish.decoder.pixel import Decoder
    from pictish.decoder.preview import Preview
    from pictish.decoder.upscaler import Upscaler
    from pictish.pipelines.settings import Drawing

SCHEMA = 2
METRICS: dict[str, Better] = {"psnr": "higher", "ssim": "higher", "feature_distance": "lower"}
"""Of each picture; name in the report -> which way is better."""
DECODER, PREVIEW, THUMBNAIL, MEAN = "decoder", "preview", "thumbnail", "mean picture"
UPSCALED = "decoder, upscaled"
STEPS = (1, 2, 4, 8, 16, 32, 50)
"""Of the curve."""


@dataclass(frozen=True)
class Coded:
    """Pictures of a set as codes, and as a decoder that loses nothing would draw them."""

    name: str
    names: list[str]
    tokens: "list[TokenizedImage]"
    originals: np.ndarray
    """(P, S, S, 3) uint8; kept for the whole set, 12 kB a picture of 64 px."""
    broken: list[Broken]

    def part(self, places: Sequence[int]) -> "Coded":
        """The pictures at these places alone."""
        names = [self.names[place] for place in places]
        tokens = [self.tokens[place] for place in places]
        return Coded(self.name, names, tokens, self.originals[list(places)], [])

    def batches(self) -> Iterator["Coded"]:
        """All pictures, at most `BATCH` at a time."""
        places = range(len(self.names))
        for start in places[::BATCH]:
            yield self.part(places[start : start + BATCH])


Way = Callable[[Coded], np.ndarray]
"""Draws every picture of a set, (P, S, S, 3) uint8."""


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
    """Measures sets of pictures with one diffusion decoder, its preview head if it has one, and a distance.

    What `drawing` leaves away is the decoder's own choice. Only with `drawing.upscale` above 1 is `upscaler`
    used: pictures are then compared at so many times the decoder's side, those that went through it beside
    the same ones resized. ValueError for a scheduler or a factor that does not fit.
    """

    metrics = METRICS

    def __init__(
        self,
        decoder: "Decoder",
        preview: "Preview | None",
        distance: FeatureDistance,
        drawing: "Drawing",
        upscaler: "Upscaler | None" = None,
        *,
        seed: int,
    ) -> None:
        self.decoder, self.preview, self.distance, self.seed = decoder, preview, distance, seed
        own = decoder.model.config.sampling
        self.steps = drawing.steps or own.steps
        self.guidance = own.guidance if drawing.guidance is None else drawing.guidance
        self.scheduler = drawing.scheduler or own.scheduler
        decoder.check(self.steps, self.guidance, self.scheduler)  # better now than after an hour
        self.upscaler, self.upscale = upscaler, drawing.upscale or 1
        if self.upscaler is not None:
            self.upscaler.check(self.upscale)
        elif self.upscale != 1:
            raise ValueError(f"upscale: {self.upscale} asked for; this model has no upscaler, so only 1 fits")
        self.side = decoder.side * self.upscale

    def code(
        self,
        name: str,
        pictures: Iterable[Picture | Broken],
        advance: Callable[[int], None] = lambda count: None,
    ) -> Coded:
        """Tokenize every picture; broken ones are listed and skipped. ValueError when none is left.

        `advance` is told how many more are done.
        """
        tokenizer = self.decoder.tokenizer
        names: list[str] = []
        tokens: list[TokenizedImage] = []
        originals: list[np.ndarray] = []
        broken: list[Broken] = []
        fit = functools.partial(prepare, squash=tokenizer.squash, decoder_side=self.side)
        for batch in in_batches(name, pictures, broken, fit):
            tokens += tokenizer.tokenize_pixels(stacked(batch), [each.size for each in batch])
            names += [each.name for each in batch]
            originals += [each.original for each in batch]
            advance(len(batch))
        return Coded(name, names, tokens, np.stack(originals), broken)

    def ways(self, coded: Coded) -> dict[str, Way]:
        """The preview, the baselines and the decoder itself, in the order they are shown."""
        mean = coded.originals.mean(axis=0).round().astype(np.uint8)
        drawn = self._diffusion(self.scheduler, self.steps)
        return {
            **self._preview(),
            THUMBNAIL: as_thumbnails,
            MEAN: lambda part: np.broadcast_to(mean, part.originals.shape),
            DECODER: lambda part: resized(drawn(part), self.side),
            **({UPSCALED: lambda part: self._upscaled(drawn(part))} if self.upscale > 1 else {}),
        }

    def curve_ways(self) -> dict[tuple[str, int], Way]:
        """The decoder at `STEPS` steps with its scheduler and the first other one that fits, if any does."""
        noise = self.decoder.model.config.noise
        others = [name for name in fitting(noise) if name != self.scheduler]
        return {
            (scheduler or noise.kind, steps): self._diffusion(scheduler, steps)
            for scheduler in (self.scheduler, *others[:1])
            for steps in STEPS
        }

    def measure(
        self,
        coded: Coded,
        ways: Mapping[Name, Way],
        advance: Callable[[int], None] = lambda count: None,
    ) -> dict[Name, Measured]:
        """Draw a set in every way and compare it with its originals.

        `advance` is told how many more pictures were drawn, of len(coded.names) times len(ways).
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
            "tokenizer": self.decoder.tokenizer.fingerprint,
            "decoder": self.decoder.fingerprint,
            "side": self.side,
            "upscale": self.upscale,
            "upscaler": self.upscaler.fingerprint if self.upscaler and self.upscale > 1 else None,
            "steps": self.steps,
            "guidance": self.guidance,
            "scheduler": self.scheduler,
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

    def _diffusion(self, scheduler: str | None, steps: int) -> Way:
        def draw(coded: Coded) -> np.ndarray:
            import torch

            # a picture's noise depends on the seed and its name alone
            noise = [torch.Generator().manual_seed(seed_of(self.seed, name)) for name in coded.names]
            settings: dict[str, Any] = {"steps": steps, "guidance": self.guidance, "scheduler": scheduler}
            return self.decoder.decode(coded.tokens, noise, **settings).numpy()

        return draw

    def _preview(self) -> dict[str, Way]:
        """The preview head as a way; none without one."""
        if self.preview is None:
            return {}
        decode = self.preview.decode
        return {PREVIEW: lambda coded: resized(decode(coded.tokens).numpy(), self.side)}

    def _upscaled(self, pictures: np.ndarray) -> np.ndarray:
        import torch

        assert self.upscaler is not None
        enlarged = self.upscaler.enlarge(torch.from_numpy(pictures), self.upscale)
        return torch.stack(enlarged).numpy()


def resized(pictures: np.ndarray, side: int) -> np.ndarray:
    """Pictures (P, S, S, 3) uint8 at this side by bicubic interpolation."""
    if pictures.shape[1] == side:
        return pictures
    each = (Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in pictures)
    return np.stack([np.asarray(one) for one in each])


def as_thumbnails(coded: Coded) -> np.ndarray:
    """Thumbnails of at most as many bits as each picture's codes, (P, S, S, 3) uint8."""
    pairs = zip(coded.originals, coded.tokens, strict=True)
    return np.stack([thumbnail(original, token.bits) for original, token in pairs])


def seconds_alone(way: Way, coded: Coded, times: int = 3) -> float:
    """Seconds to draw the first picture by itself, the median of `times` after one that is not counted."""
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
