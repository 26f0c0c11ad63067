"""LaVIT's released tokenizer weights under our names: which tensor is which, and the sizes that they tell.

Written from a description of the files, not from LaVIT's code. Only the numbers of attention heads are not in
the tensors. docs/models.md tells what was verified.

Legend: D width, C code dimension, N cells, K codes.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pictish.configs import parse
from pictish.data.importing import Meta, Part, Piece, Shape, Source
from pictish.io.files import write_atomic
from pictish.io.model_folder import CONFIG, WEIGHTS
from pictish.io.plain_yaml import to_yaml
from pictish.tokenizer.config import TokenizerConfig
from pictish.tokenizer.dynamic import UNDERSTANDING

ENCODER = "visual_tokenizer/eva_vitg_psz14.bin"
TOKENIZER = "visual_tokenizer/tokenizer_encoder.bin"
HIGHRES = "visual_tokenizer/highres_tokenizer_decoder.bin"
LOWRES = "visual_tokenizer/tokenizer_decoder.bin"
OVERRIDE = "language_model/visual_weight.bin"  # what takes the tokenizer's place for understanding
OFFICIAL_WIDTH = 1408
OFFICIAL_BLOCKS = {
    ENCODER: 40,
    TOKENIZER: 12,
    HIGHRES: 12,
}  # at that width; a file cut by whole blocks has fewer
EVA = "eva_giant_patch14_clip_224"  # timm's name of the encoder; its sizes are settings


@dataclass(frozen=True)
class Heads:
    """Attention heads: the official networks have 16 each."""

    encoder: int = 16
    merger: int = 16
    decoder: int = 16


def find_heads(folder: Path, width: int) -> Heads | None:
    """Heads of a checkpoint: 16 at the official width, else those in the `dims` of a config.json.

    It is looked for in the checkpoint's folder and beside it, where test checkpoints have it. None: unknown.
    """
    if width == OFFICIAL_WIDTH:
        return Heads()
    for path in (folder / "config.json", folder.resolve().parent / "config.json"):
        try:
            dims = json.loads(path.read_text(encoding="utf-8"))["dims"]
            return Heads(int(dims["enc_heads"]), int(dims["merger_heads"]), int(dims["decoder_heads"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


@dataclass
class Table:
    """Our tensors, and of which of theirs they are made."""

    shapes: dict[str, Shape] = field(default_factory=dict)  # of theirs
    made: list[tuple[str, tuple[str, ...], Shape, Any, torch.dtype | None]] = field(default_factory=list)

    def same(self, ours: str, theirs: str, shape: Shape) -> None:
        """Theirs as it is."""
        self.changed(ours, theirs, shape, shape, None)

    def changed(
        self,
        ours: str,
        theirs: str,
        shape: Shape,
        result: Shape,
        make: Callable[[Tensor], Tensor] | None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """What `make` makes of theirs."""
        self.shapes[theirs] = shape
        self._add(ours, (theirs,), result, make, dtype)

    def both(self, ours: str, theirs: str, *shape: int) -> None:
        """A weight, and a bias as long as its first axis."""
        self.same(f"{ours}.weight", f"{theirs}.weight", shape)
        self.same(f"{ours}.bias", f"{theirs}.bias", shape[:1])

    def rows(self, ours: str, theirs: str, shape: Shape, taken: slice) -> None:
        """Rows of a linear layer's weight and bias."""
        count = len(range(shape[0])[taken])
        for kind, full in (("weight", shape), ("bias", shape[:1])):
            result = (count, *full[1:])
            self.changed(f"{ours}.{kind}", f"{theirs}.{kind}", full, result, lambda tensor: tensor[taken])

    def joined(self, ours: str, theirs: Sequence[str], out: int, inner: int) -> None:
        """Linear layers that read the same, as one."""
        for kind, shape in (("weight", (out, inner)), ("bias", (out,))):
            keys = tuple(f"{name}.{kind}" for name in theirs)
            self.shapes |= dict.fromkeys(keys, shape)
            total = (len(theirs) * out, *shape[1:])
            self._add(f"{ours}.{kind}", keys, total, lambda *tensors: torch.cat(tensors), None)

    def constant(self, ours: str, value: Tensor) -> None:
        """A tensor of ours that they have not."""
        self._add(ours, (), tuple(value.shape), lambda: value, value.dtype)

    def _add(
        self, ours: str, keys: tuple[str, ...], shape: Shape, make: Any, dtype: torch.dtype | None
    ) -> None:
        self.made.append((ours, keys, shape, make, dtype))

    def pieces(self, path: Path, found: Mapping[str, Meta], prefix: str = "") -> list[Piece]:
        """What is to be written, under names that begin with `prefix`, in the types of theirs."""
        return [
            Piece(prefix + ours, path, keys, shape, dtype or widest(found[key].dtype for key in keys), make)
            for ours, keys, shape, make, dtype in self.made
        ]


@dataclass(frozen=True)
class Sizes:
    """What the tensors of encoder and tokenizer tell."""

    width: int
    depth: int  # blocks of the encoder
    encoder_hidden: int  # of its MLPs
    patch: int
    grid: int
    layers: int  # blocks of the merger
    hidden: int  # of its MLPs
    codes: int
    code_dim: int


def plan_tokenizer(
    source: Source, heads: Heads | None, mode: Literal["gather", "exact"]
) -> tuple[Part | None, TokenizerConfig] | None:
    """The tokenizer's folder, and its settings: each None when what is wrong with the checkpoint forbids it.

    `heads` None: found by `find_heads`. Faults are noted in `source`.
    """
    encoder, tokenizer = source.table(ENCODER, _asks("tokenize")), source.table(TOKENIZER, _asks("tokenize"))
    if encoder is None or tokenizer is None:
        return None
    sizes = _sizes(source, encoder, tokenizer)
    if sizes is None:
        return None
    heads = heads or find_heads(source.folder, sizes.width)
    if heads is None:
        source.wrong.append(
            f"{source.folder / ENCODER}: a width of {sizes.width} is not the official {OFFICIAL_WIDTH}, and "
            "the tensors do not tell how many attention heads there are; give --heads"
        )
        return None
    eva, rest = _encoder_table(sizes), _tokenizer_table(sizes)
    unused = {name: encoder[name].shape for name in encoder if name.startswith(("norm.", "head."))}
    source.expect(ENCODER, {**eva.shapes, **unused})
    source.expect(TOKENIZER, rest.shapes)
    decoder = source.table(HIGHRES, _asks("detokenize")) if (source.folder / HIGHRES).exists() else None
    pieces = []
    reconstructor: dict[str, Any] | None = None
    if decoder is not None:
        layers = blocks(decoder)
        _check_blocks(source, sizes.width, {HIGHRES: layers})
        codes = reconstructor_table(sizes.width, sizes.hidden, sizes.code_dim, sizes.grid**2, layers)
        source.expect(HIGHRES, codes.shapes, beside=("unet_",))
        reconstructor = {"layers": layers, "form": "lavit", "heads": heads.decoder}
        pieces.append((HIGHRES, codes, decoder, "reconstructor."))
    config = parse(TokenizerConfig, _settings(sizes, heads, mode, reconstructor), str(source.folder))
    if source.wrong:
        return None, config
    pieces += [(ENCODER, eva, encoder, ""), (TOKENIZER, rest, tokenizer, "")]
    weights = [p for f, t, found, prefix in pieces for p in t.pieces(source.folder / f, found, prefix)]
    return Part("tokenizer", {WEIGHTS: weights}, partial(_finish_tokenizer, config)), config


def plan_understanding(source: Source, config: TokenizerConfig) -> Part | None:
    """The folder of the merger for understanding, which goes with the tokenizer of these settings."""
    found = source.table(OVERRIDE, _asks("describe"))
    if found is None:
        return None
    table = Table()
    _merger(table, "", config.width, _hidden(config.width, config.mlp_ratio), config.merger.layers)
    projector: dict[str, Shape] = {"vit_proj.weight": (_size(found, "vit_proj.weight", 0), config.width)}
    projector["vit_proj.bias"] = projector["vit_proj.weight"][:1]
    source.expect(OVERRIDE, {**table.shapes, **projector})
    if source.wrong:
        return None
    pieces = table.pieces(source.folder / OVERRIDE, found)
    return Part(UNDERSTANDING, {WEIGHTS: pieces}, _finish_understanding)


def reconstructor_table(width: int, hidden: int, code_dim: int, cells: int, layers: int) -> Table:
    """A code decoder up to the features, in the names of `Reconstructor` with the form `lavit`."""
    table = Table()
    table.both("project_in", "in_proj", width, code_dim)
    for ours, theirs in (("order", "pos_embed"), ("queries", "query_embed")):
        table.changed(ours, theirs, (1, cells, width), (cells, width), lambda tensor: tensor[0])
    for n in range(layers):
        grid, codes = ("attend_grid", "self_attn"), ("attend_codes", "cross_attn")
        _block(table, f"blocks.{n}", f"blocks.{n}", width, hidden, grid, codes)
    table.both("norm", "norm", width)
    table.both("project_out.0", "decode_task_layer.0", width, width)
    table.both("project_out.2", "decode_task_layer.2", width, width)
    return table


def blocks(found: Mapping[str, Meta], prefix: str = "") -> int:
    """How many numbered `blocks` a file has."""
    start = f"{prefix}blocks."
    numbers = [name[len(start) :].split(".")[0] for name in found if name.startswith(start)]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def _sizes(source: Source, encoder: Mapping[str, Meta], tokenizer: Mapping[str, Meta]) -> Sizes | None:
    sizes = Sizes(
        width=_size(encoder, "cls_token", -1),
        depth=blocks(encoder),
        encoder_hidden=_size(encoder, "blocks.0.mlp.fc1.weight", 0),
        patch=_size(encoder, "patch_embed.proj.weight", -1),
        grid=math.isqrt(max(_size(encoder, "pos_embed", 1) - 1, 0)),
        layers=blocks(tokenizer, "causal_encoder."),
        hidden=_size(tokenizer, "causal_encoder.blocks.0.mlp.fc1.weight", 0),
        codes=_size(tokenizer, "quantize.embedding.weight", 0),
        code_dim=_size(tokenizer, "quantize.embedding.weight", 1),
    )
    unknown = [name for name, value in vars(sizes).items() if value < 1]
    if unknown:
        source.wrong.append(
            f"{source.folder / ENCODER} and {TOKENIZER}: the tensors do not tell {', '.join(unknown)}: "
            f"{len(encoder)} and {len(tokenizer)} tensors, but not those of a LaVIT tokenizer"
        )
        return None
    _check_blocks(source, sizes.width, {ENCODER: sizes.depth, TOKENIZER: sizes.layers})
    return sizes


def _check_blocks(source: Source, width: int, found: Mapping[str, int]) -> None:
    for file, count in found.items():
        if width == OFFICIAL_WIDTH and count != OFFICIAL_BLOCKS[file]:
            source.wrong.append(f"{source.folder / file}: {count} blocks; {OFFICIAL_BLOCKS[file]} would fit")


def _size(found: Mapping[str, Meta], name: str, axis: int) -> int:
    """The length of an axis; 0 when there is none."""
    shape = found[name].shape if name in found else ()
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def _encoder_table(sizes: Sizes) -> Table:
    table, width = Table(), sizes.width

    def name(theirs: str) -> tuple[str, str]:
        return f"encoder.backbone.model.{theirs}", theirs

    table.same(*name("cls_token"), (1, 1, width))
    table.same(*name("pos_embed"), (1, sizes.grid**2 + 1, width))
    table.both(*name("patch_embed.proj"), width, 3, sizes.patch, sizes.patch)
    for n in range(sizes.depth):
        block = f"blocks.{n}"
        table.both(*name(f"{block}.norm1"), width)
        table.same(*name(f"{block}.attn.q_bias"), (width,))
        table.same(*name(f"{block}.attn.v_bias"), (width,))
        table.same(*name(f"{block}.attn.qkv.weight"), (3 * width, width))
        table.both(*name(f"{block}.attn.proj"), width, width)
        table.both(*name(f"{block}.norm2"), width)
        table.both(*name(f"{block}.mlp.fc1"), sizes.encoder_hidden, width)
        table.both(*name(f"{block}.mlp.fc2"), width, sizes.encoder_hidden)
    table.constant("encoder.mean", torch.zeros(width))
    table.constant("encoder.scale", torch.ones(width))
    return table


def _tokenizer_table(sizes: Sizes) -> Table:
    table, width = Table(), sizes.width
    half = width // 2
    table.both("selector.project.0", "token_predictor.in_conv.0", width)
    table.both("selector.project.1", "token_predictor.in_conv.1", width, width)
    table.both("selector.score.0", "token_predictor.out_conv.0", half, width)
    table.both("selector.score.2", "token_predictor.out_conv.2", half // 2, half)
    # Keeping and dropping have a logit each, of which only the difference counts; ours has the one.
    for kind, shape in (("weight", (2, half // 2)), ("bias", (2,))):
        ours, theirs = f"selector.score.4.{kind}", f"token_predictor.out_conv.4.{kind}"
        table.changed(ours, theirs, shape, (1, *shape[1:]), _difference, torch.float32)
    table.constant("selector.level", torch.zeros(()))
    _merger(table, "merger.", width, sizes.hidden, sizes.layers)
    table.both("to_code.0", "encode_task_layer.0", width, width)
    table.both("to_code.2", "encode_task_layer.2", sizes.code_dim, width)
    table.same("quantizer.codebook", "quantize.embedding.weight", (sizes.codes, sizes.code_dim))
    return table


def widest(types: Iterable[torch.dtype]) -> torch.dtype:
    """The type that holds the numbers of all of them."""
    return reduce(torch.promote_types, types)


def _difference(tensor: Tensor) -> Tensor:
    return tensor[:1].float() - tensor[1:].float()


def _merger(table: Table, prefix: str, width: int, hidden: int, layers: int) -> None:
    table.both(f"{prefix}norm_origin", "causal_encoder.ln_vision", width)
    for n in range(layers):
        ours, theirs = f"{prefix}blocks.{n}", f"causal_encoder.blocks.{n}"
        kept, dropped = ("attend_kept", "token_causal_attn"), ("attend_dropped", "token_cross_attn")
        _block(table, ours, theirs, width, hidden, kept, dropped)
    table.both(f"{prefix}norm", "causal_encoder.norm", width)


def _block(
    table: Table,
    ours: str,
    theirs: str,
    width: int,
    hidden: int,
    inward: tuple[str, str],
    outward: tuple[str, str],
) -> None:
    """Self-attention, cross-attention and MLP; of each attention our name and theirs."""
    for n in range(3):
        table.both(f"{ours}.norms.{n}", f"{theirs}.norm{n}", width)
    fused = f"{theirs}.{inward[1]}.qkv"
    table.rows(f"{ours}.{inward[0]}.query", fused, (3 * width, width), slice(0, width))
    table.rows(f"{ours}.{inward[0]}.key_value", fused, (3 * width, width), slice(width, None))
    table.both(f"{ours}.{inward[0]}.out", f"{theirs}.{inward[1]}.proj", width, width)
    cross = f"{theirs}.{outward[1]}"
    table.both(f"{ours}.{outward[0]}.query", f"{cross}.query", width, width)
    table.joined(f"{ours}.{outward[0]}.key_value", (f"{cross}.key", f"{cross}.value"), width, width)
    table.both(f"{ours}.{outward[0]}.out", f"{cross}.proj", width, width)
    table.both(f"{ours}.mlp.0", f"{theirs}.mlp.fc1", hidden, width)
    table.both(f"{ours}.mlp.2", f"{theirs}.mlp.fc2", width, hidden)


def _settings(sizes: Sizes, heads: Heads, mode: str, reconstructor: dict[str, Any] | None) -> dict[str, Any]:
    encoder = {
        "model": EVA,
        "weights": {"kind": "folder"},
        "settings": {
            "embed_dim": sizes.width,
            "depth": sizes.depth,
            "num_heads": heads.encoder,
            "mlp_ratio": _ratio(sizes.width, sizes.encoder_hidden),
            "patch_size": sizes.patch,
        },
        "image_size": sizes.grid * sizes.patch,
        "grid": sizes.grid,
        "levels": [sizes.depth - 1],
        "level_weights": [1.0],
        "pixels": 0,
        "shrink": "exact",
        "micro_batch": 1,  # large enough to keep a core busy alone
    }
    return {
        "encoder": encoder,
        "width": sizes.width,
        "heads": heads.merger,
        "mlp_ratio": _ratio(sizes.width, sizes.hidden),
        "project": False,
        "selector": {"neighbor_suppression": 0.0},
        "merger": {"layers": sizes.layers, "mode": mode},
        "quantizer": {"kind": "euclidean", "codes": sizes.codes, "dim": sizes.code_dim},
        "reconstructor": reconstructor,
        "patch_reconstruction_weight": 0.0,
    }


def _ratio(width: int, hidden: int) -> float:
    """What `int(width * ratio)` makes `hidden` of."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _hidden(width: int, ratio: float) -> int:
    return int(width * ratio)


def _asks(command: str) -> str:
    return f"pictish {command}"


def _finish_tokenizer(config: TokenizerConfig, folder: Path, tokenizer: str) -> None:
    document = {"part": "tokenizer", "format": 1, "model": config.model_dump(mode="json")}
    write_atomic(folder / CONFIG, to_yaml(document).encode())


def _finish_understanding(folder: Path, tokenizer: str) -> None:
    document = {"part": UNDERSTANDING, "format": 1, "tokenizer": tokenizer}
    write_atomic(folder / CONFIG, to_yaml(document).encode())
