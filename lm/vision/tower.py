"""`VisionEncoder`: pixels to rows of features, through any vision tower of timm or transformers.

Legend: V views, S their side in pixels, K rows (h x w cells), F channels.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from pictish.io.files import one_line
from pictish.io.model_folder import refuse_foreign_code
from pictish.io.torch_files import open_tensors
from pictish.lm.vision.config import TimmTower, TransformersTower, VisionConfig


class VisionEncoder(nn.Module):
    """A vision tower read at one of its blocks; later ones are omitted.

    `side` is the views' side in pixels, `cells` (h, w) the rows of a view and `features` their channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.micro_batch, self.norm = config.micro_batch, config.norm
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)
        self._index: int | None = None  # of timm's block
        if isinstance(config.tower, TimmTower):
            self.tower, self.side, self.cells, self.features, self._index = _timm_tower(config.tower, config)
        else:
            self.tower, self.side, self.cells, self.features = _transformers_tower(config.tower, config)

    def forward(self, views: Tensor) -> Tensor:
        """Features (V, K, F) of uint8 `views` (V, S, S, 3), in the tower's own precision."""
        assert views.dtype == torch.uint8, views.dtype
        assert views.shape[1:] == (self.side, self.side, 3), views.shape
        return torch.cat([self._rows(part) for part in views.split(self.micro_batch)])

    def _rows(self, views: Tensor) -> Tensor:
        dtype = next(self.tower.parameters()).dtype
        pixels = rearrange(views, "v h w c -> v c h w").to(torch.float32) / 255
        pixels = ((pixels - self.mean) / self.std).to(dtype)
        tower: Any = self.tower
        if self._index is not None:
            (level,) = tower.forward_intermediates(
                pixels, indices=[self._index], norm=self.norm, stop_early=True, intermediates_only=True
            )
            return rearrange(level, "v f h w -> v (h w) f")
        if self.norm:
            rows = tower(pixel_values=pixels).last_hidden_state
        else:
            found: list[Any] = []
            block = _blocks(tower)[-1]
            handle = block.register_forward_hook(lambda module, given, made: found.append(made))
            try:
                tower(pixel_values=pixels)
            finally:
                handle.remove()
            rows = found[0][0] if isinstance(found[0], tuple) else found[0]
        count = self.cells[0] * self.cells[1]
        return rows[:, -count:]  # class tokens and registers come first

    @property
    def fingerprint(self) -> str:
        """12 hex digits over the tower's weights and over how it is read."""
        digest = hashlib.sha256(json.dumps([self.side, self.cells, self.norm, self._index]).encode())
        for name, tensor in [
            ("mean", self.mean),
            ("std", self.std),
            *sorted(self.tower.state_dict().items()),
        ]:
            digest.update(name.encode())
            plain = tensor.detach().cpu().contiguous().flatten()
            digest.update(plain.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:12]


def resolved(config: VisionConfig, encoder: VisionEncoder) -> VisionConfig:
    """The same settings as a model folder has them: weights lie in it, and all that shapes them is said."""
    tower = config.tower
    if isinstance(tower, TransformersTower):
        own: Any = encoder.tower
        settings = {n: v for n, v in own.config.to_diff_dict().items() if n not in _NOT_SHAPES}
        changes: dict[str, Any] = {"architecture": own.config.model_type, "settings": settings}
        # the blocks behind the one that is read are gone
        return config.model_copy(
            update={"tower": tower.model_copy(update={**changes, "weights": None}), "layer": -1}
        )
    return config.model_copy(update={"tower": tower.model_copy(update={"weights": None})})


_NOT_SHAPES = ("transformers_version", "model_type", "architectures", "dtype", "_name_or_path", "torch_dtype")


def _timm_tower(tower: TimmTower, config: VisionConfig) -> tuple[nn.Module, int, tuple[int, int], int, int]:
    import timm

    if not timm.is_model(tower.model):
        near = ", ".join(timm.list_models(f"*{tower.model.split('_')[0]}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"tower.model: timm knows no {tower.model!r}; near it are: {near}")
    try:
        network: Any = timm.create_model(tower.model, num_classes=0, **tower.settings)
    except Exception as error:  # timm's classes refuse settings in many ways
        raise ValueError(f"tower: timm's {tower.model} was refused ({one_line(error)})") from None
    if not hasattr(network, "forward_intermediates"):
        raise ValueError(f"tower.model: {tower.model} gives no features of its blocks; a vit would")
    levels = network.feature_info
    infos = levels.info if hasattr(levels, "info") else levels
    if -config.layer > len(infos):
        raise ValueError(f"layer: {config.layer} asked for, {tower.model} has {len(infos)} blocks")
    index = len(infos) + config.layer
    if tower.weights is not None:
        _load(network, open_tensors(_file(tower.weights)), tower.weights)
    side = int(timm.data.resolve_data_config({}, model=network)["input_size"][-1])
    sized = getattr(getattr(network, "patch_embed", None), "img_size", None)
    side = int(sized[0]) if sized else side
    cells = (side // int(infos[index]["reduction"]),) * 2
    return network, side, cells, int(infos[index]["num_chs"]), index


def _transformers_tower(
    tower: TransformersTower, config: VisionConfig
) -> tuple[nn.Module, int, tuple[int, int], int]:
    network: Any
    network = _random_tower(tower) if tower.weights is None else _pretrained_tower(tower)
    settings = network.config
    side, patch = getattr(settings, "image_size", None), getattr(settings, "patch_size", None)
    if not (isinstance(side, int) and isinstance(patch, int) and 0 < patch <= side):
        raise ValueError(
            f"tower: {settings.model_type} does not cut square pictures into patches; siglip_vision_model, "
            "clip_vision_model and dinov2 do"
        )
    blocks = _blocks(network)
    if -config.layer > len(blocks):
        raise ValueError(f"layer: {config.layer} asked for, the tower has {len(blocks)} blocks")
    if config.layer < -1:
        del blocks[config.layer + 1 :]
        settings.num_hidden_layers = len(blocks)
    return network, side, (side // patch,) * 2, int(settings.hidden_size)


def _random_tower(tower: TransformersTower) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    assert tower.architecture is not None
    try:
        known = AutoConfig.for_model(tower.architecture)
        strange = sorted(name for name in tower.settings if not hasattr(known, name))
        if strange:
            raise ValueError(f"{tower.architecture} has no setting {strange[0]!r}")
        return AutoModel.from_config(AutoConfig.for_model(tower.architecture, **tower.settings))
    except Exception as error:  # transformers has many ways to refuse settings
        raise ValueError(f"tower: {one_line(error)}") from None


def _pretrained_tower(tower: TransformersTower) -> nn.Module:
    """The vision tower of a local folder, also of one that holds a text tower beside it."""
    from transformers import AutoConfig, AutoModel

    assert tower.weights is not None
    folder, safe = Path(tower.weights).expanduser(), {"local_files_only": True, "trust_remote_code": False}
    try:
        if not (folder / "config.json").is_file():
            raise ValueError("it has no config.json")
        refuse_foreign_code(folder)
        settings: Any = AutoConfig.from_pretrained(folder, **safe)
        settings = getattr(settings, "vision_config", settings)
        for name, value in tower.settings.items():
            if not hasattr(settings, name):
                raise ValueError(f"{settings.model_type} has no setting {name!r}")
            setattr(settings, name, value)
        network, report = AutoModel.from_pretrained(
            folder,
            config=settings,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **safe,
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} first")
    except Exception as error:
        raise ValueError(f"{folder}: cannot be loaded as a vision tower ({one_line(error)})") from error
    return network


def _blocks(network: nn.Module) -> nn.ModuleList:
    """The blocks of a transformer: the longest list of modules in it."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"tower: {type(network).__name__} has no list of blocks to read from")
    return max(lists, key=len)


def _file(path: str) -> Path:
    found = Path(path).expanduser()
    if found.suffix != ".safetensors":
        raise ValueError(f"tower.weights: {path} is no .safetensors file")
    return found


def _load(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    own = network.state_dict()
    wrong = [
        name for name, tensor in own.items() if name not in tensors or tensors[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(
            f"{source}: {len(wrong)} of {len(own)} weights are missing or misshapen, first {wrong[0]}"
        )
    network.load_state_dict({name: tensors[name] for name in own})
