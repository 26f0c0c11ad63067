"""Speed and memory of LaVIT's merger at full size: exact and gather mode against a dense one written out.

    python -m tools.bench_lavit                       width 1408, 12 blocks, 16 heads, 256 patches, 90 kept
    python -m tools.bench_lavit --layers 2 --images 1 --times 2    a quick look at whether it works

The dense one does what the official code does, step by step: all rows through all blocks, the mask made anew
in each, softmax by hand with its full-size temporaries. All three have the same random weights, run in one
process in turns, in float32 on the CPU; the best time of each counts. Memory is what the allocator was asked
for on top of weights and input, at its highest (torch's profiler). Goals: exact 1.1 times as fast with at
most half of the extra memory, gather 2.7 times as fast. Run it on a machine that does nothing else.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pictish.tokenizer.attention import LEAK
from pictish.tokenizer.merger import Merger, kept_rows


def dense(merger: Merger, x: Tensor, keep: Tensor) -> Tensor:
    """All rows (B, N, D) of the official computation, in a straightforward way."""
    origin = merger.norm_origin(x)
    for block in merger.blocks:
        normed = block.norms[0](x)  # type: ignore[index, operator]
        lower = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        allowed = keep[:, None, :] & lower | torch.eye(x.shape[1], dtype=torch.bool)
        x = x + _attend(block.attend_kept, normed, normed, allowed[:, None])
        x = x + _attend(block.attend_dropped, block.norms[1](x), origin, (~keep)[:, None, None, :])  # type: ignore[index, operator]
        x = x + block.mlp(block.norms[2](x))  # type: ignore[index, operator]
    return merger.norm(x)


def _attend(attention: nn.Module, x: Tensor, context: Tensor, allowed: Tensor) -> Tensor:
    def split(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (attention.heads, -1)).transpose(1, 2)  # type: ignore[arg-type]

    q = split(attention.query(x))  # type: ignore[operator]
    k, v = (split(half) for half in attention.key_value(context).chunk(2, dim=-1))  # type: ignore[operator]
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    shifted = logits - logits.max(dim=-1, keepdim=True).values
    weights = shifted.exp() * allowed.to(shifted.dtype)
    weights = (weights + LEAK / k.shape[2]) / (weights.sum(dim=-1, keepdim=True) + LEAK)
    return attention.out((weights @ v).transpose(1, 2).flatten(2))  # type: ignore[operator]


def random_merger(width: int, heads: int, hidden: int, layers: int) -> Merger:
    """Random weights of a size that lets attention differ from row to row."""
    torch.manual_seed(0)
    merger = Merger(width, heads, (hidden + 0.5) / width, layers, "exact")
    for block in merger.blocks:
        out: nn.Linear = block.attend_dropped.out  # type: ignore[assignment, union-attr]
        nn.init.normal_(out.weight, std=width**-0.5)
    return merger.eval().requires_grad_(False)


def extra_memory(run: Callable[[], Tensor]) -> int:
    """Bytes alive at once that `run` asked for, at their most."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"width": 1408, "heads": 16, "hidden": 6144, "layers": 12, "cells": 256, "kept": 90}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--pictures", type=int, default=8, help="of a batch")
    parser.add_argument("--times", type=int, default=3, help="the best counts")
    settings = parser.parse_args()
    merger = random_merger(settings.width, settings.heads, settings.hidden, settings.layers)
    hidden = torch.randn(settings.pictures, settings.cells, settings.width)
    order = torch.rand(settings.pictures, settings.cells).argsort(dim=1)
    keep = order < settings.kept
    rows, real = kept_rows(keep, settings.kept)

    def gathered(mode: str) -> Tensor:
        merger.mode = mode  # type: ignore[assignment]
        return merger.gathered(hidden, keep, rows, real)

    runs: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: dense(merger, hidden, keep),
        "exact": lambda: gathered("exact"),
        "gather": lambda: gathered("gather"),
    }
    with torch.inference_mode():
        expected = torch.take_along_dim(runs["dense"](), rows[..., None], dim=1)
        apart = {name: (expected - run()).abs().max().item() for name, run in runs.items() if name != "dense"}
        memory = {name: extra_memory(run) for name, run in runs.items()}
        seconds = dict.fromkeys(runs, float("inf"))
        for _ in range(settings.times):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    print(f"{torch.get_num_threads()} threads; {vars(settings)}")
    print(f"{'':8} {'images/s':>9} {'speed-up':>9} {'extra memory':>13} {'share':>6} {'furthest apart':>16}")
    for name in runs:
        speed, share = settings.pictures / seconds[name], memory[name] / memory["dense"]
        distance = f"{apart[name]:.1e}" if name in apart else ""
        faster = seconds["dense"] / seconds[name]
        print(
            f"{name:8} {speed:9.2f} {faster:8.2f}x {memory[name] / 1e6:10.1f} MB {share:6.2f} {distance:>16}"
        )


if __name__ == "__main__":
    main()
