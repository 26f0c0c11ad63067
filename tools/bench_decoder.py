"""Seconds and peak memory of drawing 1, 4 and 16 images with the diffusion decoder at its default steps.

python tools/bench_decoder.py --model MODEL                1, 4 and 16 images
python tools/bench_decoder.py --model MODEL --counts 1 2 --times 1      a quick look at whether it works

Each count is drawn in a process of its own, so that its peak memory is its own; seconds are the median of
some drawings after one of a single image, so that start-up does not count. The codes are of photographs.
Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure each count in a process, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--times", type=int, default=3, help="drawings to take the median of")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)  # the process of one count
    settings = parser.parse_args()
    if settings.alone:
        print(json.dumps(draw(settings.model, settings.device, settings.alone, settings.times)))
        return
    print("pictures   seconds  a picture   ratio   peak MiB   ratio   MiB above loading")
    first = None
    for count in settings.counts:
        found = alone(settings, count)
        first = first or found
        print(
            f"{count:8} {found['seconds']:9.2f} {found['seconds'] / count:10.3f} "
            f"{found['seconds'] / first['seconds']:7.2f} {found['peak'] / 2**20:10,.1f} "
            f"{found['peak'] / first['peak']:7.2f} {(found['peak'] - found['loaded']) / 2**20:19,.1f}",
            flush=True,
        )
    print("linear is a ratio of seconds of at most the ratio of the pictures")


def alone(settings: argparse.Namespace, count: int) -> dict[str, float]:
    """`draw` in a process of its own. This one stays small: a child's peak begins at its parent's memory."""
    words = [sys.executable, __file__, "--alone", str(count), "--times", str(settings.times)]
    words += ["--model", settings.model, "--device", settings.device]
    said = subprocess.run(
        words, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    found: dict[str, float] = json.loads(said.stdout)
    return found


def draw(model: str, device: str, count: int, times: int) -> dict[str, float]:
    """Seconds of drawing `count` images, and peak memory in bytes, after loading and at the end."""
    import torch

    from pictish.decoder.pixel import Decoder
    from pictish.evaluation.pictures import Picture, photographs
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.runtime import resolve_device

    tokenizer = Tokenizer.from_folder(model, device=resolve_device(device))
    decoder = Decoder.from_folder(model, tokenizer, resolve_device(device))
    # small ones: the peak is to be that of drawing, not of a photograph
    small = [
        each.image.resize((256, 256))
        for each in photographs().decode({0, 1, 2, 5})
        if isinstance(each, Picture)
    ]
    tokens = tokenizer.tokenize(small)
    own = decoder.model.config.sampling
    settings = {"steps": own.steps, "guidance": own.guidance, "scheduler": own.scheduler}
    loaded = peak()

    def once(number: int) -> float:
        generators = [torch.Generator().manual_seed(seed) for seed in range(number)]
        start = time.perf_counter()
        decoder.decode([tokens[place % len(tokens)] for place in range(number)], generators, **settings)
        return time.perf_counter() - start

    once(1)
    seconds = statistics.median(once(count) for _ in range(times))
    return {"seconds": seconds, "loaded": loaded, "peak": peak()}


def peak() -> int:
    """Bytes of memory that this process had at most so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
