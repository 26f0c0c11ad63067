"""LaVIT's released pixel decoders as ours: code decoder heads, a UNet of diffusers and its autoencoder.

Written from a description of the files, not from LaVIT's code. docs/models.md tells what was verified.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pictish.configs import parse
from pictish.data.importing import Meta, Part, Piece, Shape, Source
from pictish.decoder.config import DiffusionConfig
from pictish.decoder.diffusion import AUTOENCODER, DENOISER, SCHEDULER, folder_document
from pictish.decoder.schedulers import build_scheduler
from pictish.io.files import one_line, write_atomic
from pictish.io.model_folder import CONFIG, WEIGHTS
from pictish.io.plain_yaml import to_yaml
from pictish.io.torch_files import SINGLE
from pictish.tokenizer.config import TokenizerConfig
from pictish.tokenizer.lavit import HIGHRES, LOWRES, Heads, blocks, reconstructor_table, widest
from pictish.tokenizer.quantizers.config import EuclideanConfig

NEEDED_BY = "pictish detokenize, generate and edit"
NETWORK = "diffusion_pytorch_model"
# (height, width) for which the high-resolution decoder was published, of images of 1,024 pixels
PUBLISHED = ((1024, 1024), (896, 1152), (832, 1216), (768, 1344), (1216, 832), (1152, 896))
# What diffusers called these before 0.18; the autoencoder of Stable Diffusion 1.5 still does.
DEPRECATED = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


class Released(NamedTuple):
    """One of the two decoders."""

    part: str
    folder: str
    codes: str  # file of the code decoder
    heads: tuple[str, ...]  # linear layers whose outputs lie side by side in the sequence
    pool: str | None
    null: str | None  # file of what stands for no codes
    sampling: dict[str, Any]
    redraw: dict[str, Any] | None


DDIM = {"scheduler": "DDIMScheduler"}
RELEASED = {
    "highres": Released(
        "decoder",
        "highres_pixel_decoding",
        HIGHRES,
        ("unet_proj_1", "unet_proj_2"),
        "unet_attnpool",
        None,
        {**DDIM, "steps": 25, "guidance": 7.0},
        {**DDIM, "steps": 50, "guidance": 5.0},
    ),
    "lowres": Released(
        "decoder-lowres",
        "pixel_decoding",
        LOWRES,
        ("unet_proj",),
        None,
        "pixel_decoding/uncond_embeddings.bin",
        {**DDIM, "steps": 50, "guidance": 5.0},
        None,
    ),
}


def plan_decoder(
    source: Source, which: Literal["highres", "lowres"], tokenizer: TokenizerConfig, heads: Heads
) -> Part | None:
    """The folder of one pixel decoder; None where something is wrong, which is noted in `source`."""
    faults = len(source.wrong)
    released = RELEASED[which]
    table = source.table(released.codes, NEEDED_BY)
    network = _network(source, f"{released.folder}/unet", "UNet2DConditionModel")
    autoencoder = _network(source, f"{released.folder}/vae", "AutoencoderKL")
    stored = source.table(released.null, NEEDED_BY) if released.null else {}
    if table is None or network is None or autoencoder is None or stored is None:
        return None
    (denoiser, denoiser_pieces), (vae, vae_pieces) = network, autoencoder
    pieces, condition = _heads(source, released, table, tokenizer, heads)
    if released.null:
        null = stored[SINGLE].shape if SINGLE in stored else ()
        most = tokenizer.encoder.grid**2
        if len(null) != 3 or (null[0], null[2]) != (1, condition["width"]) or not 0 < null[1] <= most:
            source.wrong.append(
                f"{source.folder / released.null}: holds {sorted(stored)[:2]} of shape {null}; one tensor of "
                f"1 x rows x {condition['width']} would fit"
            )
        else:
            condition["null"] = null[1]
            path, dtype = source.folder / released.null, stored[SINGLE].dtype
            pieces.append(Piece("null", path, (SINGLE,), tuple(null[1:]), dtype, lambda tensor: tensor[0]))
    config = _settings(source, released, denoiser, vae, condition)
    if len(source.wrong) > faults or config is None:
        return None
    weights = {
        WEIGHTS: pieces,
        f"{DENOISER}/{NETWORK}.safetensors": denoiser_pieces,
        f"{AUTOENCODER}/{NETWORK}.safetensors": vae_pieces,
    }
    return Part(released.part, weights, partial(_finish, config, denoiser, vae))


def _heads(
    source: Source,
    released: Released,
    found: Mapping[str, Meta],
    tokenizer: TokenizerConfig,
    heads: Heads,
) -> tuple[list[Piece], dict[str, Any]]:
    """Tensors of `HeadCondition`, and its settings."""
    path, width, cells = source.folder / released.codes, tokenizer.width, tokenizer.encoder.grid**2
    outs = [found[f"{head}.weight"].shape[0] if f"{head}.weight" in found else 0 for head in released.heads]
    shapes: dict[str, Shape] = {}
    for head, out in zip(released.heads, outs, strict=True):
        shapes |= {f"{head}.weight": (out, width), f"{head}.bias": (out,)}
    pieces = []
    for kind, rest in (("weight", (width,)), ("bias", ())):
        keys = tuple(f"{head}.{kind}" for head in released.heads)
        kinds = [found[key].dtype for key in keys if key in found]
        if kinds:
            pieces.append(
                Piece(f"to_sequence.{kind}", path, keys, (sum(outs), *rest), widest(kinds), _side_by_side)
            )
    settings: dict[str, Any] = {"kind": "heads", "width": sum(outs), "heads": heads.decoder}
    if released.pool:
        last = found.get(f"{released.pool}.c_proj.weight")
        settings["pooled"] = last.shape[0] if last else 0
        names: dict[str, tuple[str, tuple[int, ...]]] = {
            "positional_embedding": ("positions", (cells + 1, width))
        }
        for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("c_proj", "out")):
            rows = settings["pooled"] if ours == "out" else width
            names |= {f"{theirs}.weight": (f"{ours}.weight", (rows, width))}
            names |= {f"{theirs}.bias": (f"{ours}.bias", (rows,))}
        for theirs, (ours, shape) in names.items():
            key = f"{released.pool}.{theirs}"
            shapes[key] = shape
            if key in found:
                pieces.append(Piece(f"pool.{ours}", path, (key,), shape, found[key].dtype))
        # the trunk is the tokenizer's reconstructor, whose own plan sees to it
        source.expect(released.codes, shapes, tuple(n for n in found if not n.startswith("unet_")))
    else:
        layers = blocks(found)
        first = found.get("blocks.0.mlp.fc1.weight")
        hidden = first.shape[0] if first else 0
        assert isinstance(tokenizer.quantizer, EuclideanConfig), tokenizer.quantizer
        trunk = reconstructor_table(width, hidden, tokenizer.quantizer.dim, cells, layers)
        source.expect(released.codes, {**trunk.shapes, **shapes})
        if all(key in found for key in trunk.shapes):
            pieces += trunk.pieces(path, found, "trunk.")
        settings["trunk"] = {"layers": layers, "mlp_ratio": (hidden + 0.5) / width}
    return pieces, settings


def _network(source: Source, folder: str, name: str) -> tuple[Any, list[Piece]] | None:
    """A network of diffusers without weights, and its tensors in our file; None, and the fault is noted."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    cls = {"AutoencoderKL": AutoencoderKL, "UNet2DConditionModel": UNet2DConditionModel}[name]
    path = source.folder / folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or settings.get("_class_name") != name:
            raise ValueError(f"a {name} was expected")
        with torch.device("meta"):
            network = cls.from_config(settings)
    except FileNotFoundError:
        source.lacks(f"{folder}/config.json", NEEDED_BY)
        return None
    except Exception as error:  # diffusers has many ways to refuse settings
        source.wrong.append(f"{path}: not the settings of a {name} ({one_line(error)}); copy it again")
        return None
    kinds = [kind for kind in ("safetensors", "bin") if (path.parent / f"{NETWORK}.{kind}").is_file()]
    file = f"{folder}/{NETWORK}.{(kinds or ['bin'])[0]}"
    found = source.table(file, NEEDED_BY)
    if found is None:
        return None
    shapes = {n: tuple(tensor.shape) for n, tensor in network.state_dict().items()}
    theirs = {n: n if n in found or _old(n) not in found else _old(n) for n in shapes}
    source.expect(file, {theirs[n]: shape for n, shape in shapes.items()})
    return network, [
        Piece(ours, source.folder / file, (theirs[ours],), shape, found[theirs[ours]].dtype)
        for ours, shape in shapes.items()
        if theirs[ours] in found
    ]


def _old(name: str) -> str:
    """What a tensor of an autoencoder's attention was called before."""
    for new, old in DEPRECATED.items():
        name = name.replace(new, old)
    return name


def _settings(
    source: Source, released: Released, denoiser: Any, vae: Any, condition: Mapping[str, Any]
) -> DiffusionConfig | None:
    shrink = 2 ** (len(vae.config["block_out_channels"]) - 1)
    side = int(denoiser.config["sample_size"] or 0) * shrink
    shapes: Sequence[tuple[int, int]] = [(side, side)]
    if released.pool:
        scaled = [(height * side / 1024, width * side / 1024) for height, width in PUBLISHED]
        shapes = [(int(h), int(w)) for h, w in scaled if h % shrink == 0 and w % shrink == 0]
    raw = {
        "side": side,
        "shapes": shapes,
        "denoiser": {"kind": "unet"},
        "autoencoder": {"kind": "kl", "folder": AUTOENCODER},
        "condition": condition,
        "noise": {
            "kind": "diffusion",
            "predicts": "epsilon",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "spacing": "leading",
        },
        "sampling": released.sampling,
        "redraw": released.redraw,
        "micro_batch": 1,  # large enough to keep a device busy alone
    }
    try:
        return parse(DiffusionConfig, raw, str(source.folder / released.folder))
    except ValueError as error:
        if not source.wrong:  # else it is a consequence of what is noted already
            source.wrong.append(str(error))
        return None


def _side_by_side(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors)


def _finish(config: DiffusionConfig, denoiser: Any, vae: Any, folder: Path, tokenizer: str) -> None:
    """All files but the weights."""
    denoiser.save_config(folder / DENOISER)
    vae.save_config(folder / AUTOENCODER)
    build_scheduler(config.sampling.scheduler, config.noise).save_pretrained(folder / SCHEDULER)
    write_atomic(folder / CONFIG, to_yaml(folder_document(folder, config, tokenizer)).encode())
