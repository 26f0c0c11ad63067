"""Super-resolution behind any decoder: a compact convolutional network enlarges what was drawn.

Legend: B images, H x W pixels, r the network's upscaling factor.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pictish.configs import parse
from pictish.decoder.config import UpscalerConfig
from pictish.decoder.denoiser import check_finite
from pictish.io.budget import sized_like
from pictish.io.model_folder import CONFIG, WEIGHTS, load_strictly, need, read_model_folder, whole_folder
from pictish.io.plain_yaml import to_yaml
from pictish.tokenizer.parallel import SideBySide
from pictish.training.isolation import inference, loading

LICENCE = "LICENSE"  # of the weights, beside them


class CompactUpscaler(nn.Module):
    """SRVGGNetCompact, the small network of Real-ESRGAN (arXiv 2107.10833).

    Plain convolutions at the resolution of the input, then a pixel shuffle: they predict what enlargement by
    the nearest neighbor lacks.
    """

    def __init__(self, config: UpscalerConfig):
        super().__init__()
        self.config = config
        width = config.width
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(config.layers):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        layers.append(nn.Conv2d(width, 3 * config.upscale**2, 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, rgb: Tensor) -> Tensor:
        """Images (B, 3, rH, rW), about in [0, 1], of images (B, 3, H, W) in [0, 1], both float32."""
        details = self.body(rgb.to(next(self.parameters()).dtype))
        details = F.pixel_shuffle(details, self.config.upscale).float()
        return details + F.interpolate(rgb, scale_factor=self.config.upscale, mode="nearest")


class Upscaler:
    """A trained upscaler with its fingerprint; on a CPU it computes in float32, whatever `dtype` says."""

    def __init__(
        self,
        network: CompactUpscaler,
        name: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.config = network.config
        self.fingerprint = name
        self.device = torch.device(device)
        dtype = torch.float32 if self.device.type == "cpu" else dtype
        self.network = network.eval().requires_grad_(False)
        self.network.to(self.device, dtype).to(memory_format=torch.channels_last)
        self._side_by_side = SideBySide(self.device)

    @classmethod
    @loading
    def from_folder(
        cls, folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "Upscaler":
        """Load a model folder; ValueError when it is damaged or holds another part."""
        stored = read_model_folder(folder)
        if stored.config.get("part") != "upscaler":
            raise ValueError(
                f"{folder}: an upscaler was asked for, this folder holds part {stored.config.get('part')!r}"
            )
        need(stored.config, ("model",), folder)
        config = parse(UpscalerConfig, stored.config["model"], str(folder))
        with sized_like(folder, str(folder)):
            network = CompactUpscaler(config)
        load_strictly(network, stored.tensors, str(folder))
        check_finite(network, str(folder))
        return cls(network, stored.fingerprint, device, dtype)

    def check(self, factor: int) -> None:
        """ValueError for a factor that is no divisor of the network's."""
        own = self.config.upscale
        if factor < 1 or own % factor:
            fitting = ", ".join(str(n) for n in range(1, own + 1) if own % n == 0)
            raise ValueError(f"upscale: {factor} asked for; {fitting} fit this upscaler")

    @inference
    def enlarge(self, pictures: Iterable[Tensor], factor: int) -> list[Tensor]:
        """Images uint8 (factor x H, factor x W, 3) of images uint8 (H, W, 3), each of its own size.

        A factor below the network's is its output averaged over areas. Each image is a forward of its own:
        same image, same pixels, in any company. Raises ValueError for a factor that does not divide the
        network's.
        """
        self.check(factor)

        def enlarged(picture: Tensor) -> Tensor:
            rgb = rearrange(picture.to(self.device), "h w c -> 1 c h w").float() / 255
            rgb = self.network(rgb.contiguous(memory_format=torch.channels_last)).clamp(0, 1)
            rgb = F.avg_pool2d(rgb, self.config.upscale // factor)
            return rearrange((rgb * 255).round().to(torch.uint8), "1 c h w -> h w c").cpu()

        return list(self._side_by_side.map(enlarged, pictures))


def save_upscaler(
    folder: Path,
    config: UpscalerConfig,
    tensors: Mapping[str, Tensor],
    licence: str | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a model folder with `tensors` as they are, and the text of their licence beside them."""
    from safetensors.torch import save_file

    document = {"part": "upscaler", "format": 1, "model": config.model_dump(mode="json")}
    with whole_folder(folder, overwrite, lambda name: name in (CONFIG, WEIGHTS, LICENCE)) as temp:
        (temp / CONFIG).write_text(to_yaml(document), encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temp / WEIGHTS)
        if licence is not None:
            (temp / LICENCE).write_text(licence, encoding="utf-8")
