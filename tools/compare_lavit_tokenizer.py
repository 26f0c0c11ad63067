"""The tokenizer's stages of tools/compare_lavit.py: from files to codes, and to what an LM reads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.pipelines.lavit_replay import gumbel
from pictish.tokenizer.dynamic import FeaturesFor, Tokenizer
from pictish.tokenizer.selector import choose
from tools.compare_lavit import SHARP, Row, Run, Stage, same, tensors


def pictures(run: Run) -> Iterator[Row]:
    """Files to what the encoder is shown."""
    encoder = run.tokenizer.network.encoder
    rgb = run.pixels.permute(0, 3, 1, 2).float() / 255
    shown = (rgb - encoder.rgb_mean) / encoder.rgb_std
    yield tensors("pixel_values", shown, run.inputs["pixel_values"], 1e-6)


def encoder(run: Run) -> Iterator[Row]:
    """Blocks of the encoder, class token included."""
    network = run.tokenizer.network
    backbone: Any = network.encoder.backbone
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for block in backbone.model.blocks
    ]
    hooks.append(
        backbone.model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    )
    features = network.encoder(run.pixels)
    for hook in hooks:
        hook.remove()
    yield tensors("encoder.embed", seen[0], run.expected["encoder.embed"])
    for number, output in enumerate(seen[1:]):
        yield tensors(f"encoder.block.{number}", output, run.expected[f"encoder.block.{number}"])
    theirs = run.expected["encoder.features_with_cls"]
    yield tensors("encoder.features_with_cls", seen[-1], theirs)
    yield tensors("encoder.features", features, theirs[:, 1:])


def selector(run: Run) -> Iterator[Row]:
    """Scores, and what is kept by threshold and by LaVIT's draw."""
    logits = _logits(run)
    both = torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
    yield tensors("selector.logp", both, run.expected["selector.logp"])
    yield same("keep.argmax", choose(logits), run.masks["argmax"])
    for name, mask in run.masks.items():
        if name.startswith("gumbel"):
            drawn = gumbel(_seeded(int(name.removeprefix("gumbel"))))(logits)
            yield same(f"keep.{name}", drawn, mask)


def merger(run: Run) -> Iterator[Row]:
    """Blocks and output of the merger for all rows, by every mask."""
    network = run.tokenizer.network
    hidden = network.embed(run.pixels)
    yield tensors("merger.ln_vision", network.merger.norm_origin(hidden), run.expected["merger.ln_vision"])
    yield from _blocks(run, hidden)
    for name, mask in run.masks.items():
        ours = network.merger(hidden, mask)
        yield tensors(f"merger.out.{name}", ours, run.expected[f"merger.out.{name}"])


def _blocks(run: Run, hidden: Tensor) -> Iterator[Row]:
    merger = run.tokenizer.network.merger
    seen: list[Tensor] = []
    # `leaky` of a block is no forward, so its output is read as what the next norm is given
    nexts = [*(block.norms[0] for block in list(merger.blocks)[1:]), merger.norm]  # type: ignore[index, union-attr]
    hooks = [norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])) for norm in nexts]
    merger(hidden, run.masks["argmax"])
    for hook in hooks:
        hook.remove()
    for number, output in enumerate(seen):
        yield tensors(f"merger.block.{number}", output, run.expected[f"merger.block.{number}"])


def quantizer(run: Run) -> Iterator[Row]:
    """Kept rows to codes."""
    network = run.tokenizer.network
    for name, mask in run.masks.items():
        codes = network.to_code(features_of(run, mask, "quantization"))
        yield tensors(f"quantize.input.{name}", codes, run.expected[f"quantize.input.{name}"])
        found = network.quantizer(codes)
        yield tensors(f"quantize.z_q.{name}", found.vectors, run.expected[f"quantize.z_q.{name}"])
        margin = _margin(network.quantizer.normalise(codes), network.quantizer.codebook)
        yield tensors(f"quantize.margin.{name}", margin, run.expected[f"quantize.margin.{name}"])
        yield same(f"quantize.counts.{name}", mask.sum(dim=1), run.expected[f"quantize.counts.{name}"])


def tokens(run: Run) -> Iterator[Row]:
    """The tokenizer as its users call it."""
    ids = run.config["ids"]
    for name, mask in run.masks.items():
        found = run.tokenizer.tokenize_pixels(run.pixels, run.sizes, keep=mask)
        codes = [token.ids + ids["code_offset"] for token in found]
        yield same(f"tokenize.ids.{name}", np.concatenate(codes), run.expected[f"tokenize.ids.{name}"])
        wrapped = [np.array([ids["image_start"], *own, ids["image_end"]]) for own in codes]
        theirs = run.expected[f"tokenize.ids_special.{name}"]
        yield same(f"tokenize.ids_special.{name}", np.concatenate(wrapped), theirs)
    for name in run.expected.kinds("tokenize.ids.seeded"):
        draw: dict[str, Any] = {"keep": gumbel(_seeded(int(name)))}
        found = run.tokenizer.tokenize_pixels(run.pixels, run.sizes, **draw)
        own = np.concatenate([token.ids + ids["code_offset"] for token in found])
        yield same(f"tokenize.ids.seeded{name}", own, run.expected[f"tokenize.ids.seeded{name}"])


def sharp(run: Run) -> Iterator[Row]:
    """The tokenizer with sharper attention, on which a merger that leaves rows away gets codes wrong."""
    if not (run.fixture / SHARP).is_dir():
        return
    tokenizer = Tokenizer.from_folder(run.model(SHARP, ["tokenizer"]))
    network = tokenizer.network
    hidden = network.embed(run.pixels)
    for name in run.expected.kinds("sharp.merger.out."):
        mask = run.masks[name]
        ours = network.merger(hidden, mask)
        yield tensors(f"sharp.merger.out.{name}", ours, run.expected[f"sharp.merger.out.{name}"])
        codes = network.to_code(ours[mask])
        margin = _margin(network.quantizer.normalise(codes), network.quantizer.codebook)
        theirs = run.expected[f"sharp.quantize.margin.{name}"]
        yield tensors(f"sharp.quantize.margin.{name}", margin, theirs)
        found = tokenizer.tokenize_pixels(run.pixels, run.sizes, keep=mask)
        own = np.concatenate([token.ids + run.config["ids"]["code_offset"] for token in found])
        yield same(f"sharp.tokenize.ids.{name}", own, run.expected[f"sharp.tokenize.ids.{name}"])


def understanding(run: Run) -> Iterator[Row]:
    """The merger for understanding, for all rows and as `encode` gives kept ones."""
    tokenizer = run.tokenizer
    hidden = tokenizer.network.embed(run.pixels)
    other = tokenizer._merger_for_understanding()
    for name, mask in run.masks.items():
        theirs = run.expected[f"understanding.merger_out.{name}"]
        yield tensors(f"understanding.merger_out.{name}", other(hidden, mask), theirs)
        rows = features_of(run, mask, "understanding")
        yield tensors(f"understanding.rows.{name}", rows, theirs[mask])


def features_of(run: Run, keep: Tensor, use: FeaturesFor) -> Tensor:
    """Features of all kept patches (K1 + K2 + ..., D), one image after the other."""
    encoded = run.tokenizer.encode(run.pixels, sizes=run.sizes, features_for=use, keep=keep)
    return torch.cat([torch.from_numpy(one.features) for one in encoded if one.features is not None])


def _logits(run: Run) -> Tensor:
    network = run.tokenizer.network
    return network.selector(network.embed(run.pixels))


def _seeded(seed: int) -> torch.Generator:
    """torch's global generator as the official code finds it after `torch.manual_seed(seed)`."""
    torch.manual_seed(seed)
    return torch.default_generator


def _margin(unit: Tensor, codebook: Tensor) -> Tensor:
    """By how much the nearest row is nearer, in squared distance, than the one after it: (M,)."""
    distances = unit.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * unit @ codebook.T
    nearest = distances.topk(2, dim=1, largest=False).values
    return nearest[:, 1] - nearest[:, 0]


STAGES: list[Stage] = [
    pictures,
    encoder,
    selector,
    merger,
    quantizer,
    tokens,
    sharp,
    understanding,
]
