"""How far running LaVIT's weights on kept rows alone (`gather`) changes what comes out.

Legend: B images, S side in pixels, N cells, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pictish.configs import parse
from pictish.io.model_folder import load_strictly, read_model_folder
from pictish.tokenizer.config import EncoderConfig, SelectorConfig, TokenizerConfig
from pictish.tokenizer.encoder import Encoder
from pictish.tokenizer.merger import Merger, kept_rows
from pictish.tokenizer.quantizers import build_quantizer
from pictish.tokenizer.selector import Selector, choose


@dataclass(frozen=True)
class Agreement:
    """Codes of the mode `gather` against those of `exact`, with the same patches kept by threshold."""

    pictures: int
    codes: int
    equal: float  # share of the codes
    worst: float  # the same in the image where it is smallest
    furthest: float  # largest difference of two merged rows, which are of about unit variance


@torch.inference_mode()
def measure_agreement(folder: Path, pixels: Tensor, done: Callable[[], None] = lambda: None) -> Agreement:
    """Of a tokenizer folder on uint8 `pixels` (B, S, S, 3); `done` is called after each image.

    Encoder and tokenizer are in memory one after the other, and never the reconstructor.
    """
    stored = read_model_folder(folder)
    config = parse(TokenizerConfig, stored.config["model"], str(folder))
    assert isinstance(config.encoder, EncoderConfig), config.encoder
    assert isinstance(config.selector, SelectorConfig), config.selector
    own = "encoder."
    encoder = Encoder(config.encoder).eval()
    load_strictly(encoder, {n[len(own) :]: t for n, t in stored.tensors.items() if n.startswith(own)}, own)
    features = []
    for one in pixels.split(1):
        features.append(encoder(one))
        done()
    del encoder
    width = config.width
    quantizer = build_quantizer(config.quantizer)
    merger = Merger(width, config.heads, config.mlp_ratio, config.merger.layers)
    selector = Selector(width, config.encoder.grid, config.selector.neighbor_suppression)
    to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, quantizer.dim))
    parts = {"selector": selector, "merger": merger, "to_code": to_code, "quantizer": quantizer}
    tensors = {n: t for n, t in stored.tensors.items() if n.split(".")[0] in parts}
    load_strictly(nn.ModuleDict(parts).eval(), tensors, str(folder))
    total, equals, shares, furthest = 0, [], [], 0.0
    for hidden in features:
        keep = choose(selector(hidden))
        rows, real = kept_rows(keep, int(keep.sum()))
        found = []
        for mode in ("exact", "gather"):
            merger.mode = mode
            merged = merger.gathered(hidden, keep, rows, real)[0]
            found.append((merged, quantizer(to_code(merged)).ids))
        (exact, ids), (gathered, others) = found
        equals.append(int((ids == others).sum()))
        shares.append(equals[-1] / len(ids))
        furthest = max(furthest, float((exact - gathered).abs().max()))
        total += len(ids)
    return Agreement(len(features), total, sum(equals) / total, min(shares), furthest)
