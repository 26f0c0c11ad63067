"""Speed of `pictish tokenize` against the bare model, and whether its memory grows with the images.

python tools/bench_tokenize.py                     500 images for speed, 1,000 against 5,000 for memory
python tools/bench_tokenize.py --images 20 --memory 20 40      a quick look at whether it works

The command runs as a process of its own, once on 100 images and once on that many more; its speed is that
of the further ones, by the seconds that its last line says, so that start-up does not count. The bare model
runs before, between and after, on tensors that are ready. Run it on a machine that does nothing else.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIDE = 512
DISTINCT = 100  # further images are links to these under other names
START = 100  # images of the run that shows what start-up costs


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pictures", type=int, default=500, help="for the speed")
    parser.add_argument("--memory", type=int, nargs=2, default=[1000, 5000], help="numbers to compare")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--kind", choices=["jpg", "png", "webp"], default="jpg")
    settings = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "start", START, settings.kind)
        make_pictures(folder / "speed", START + settings.pictures, settings.kind)
        speed(folder, settings)
        few, many = settings.memory
        peaks = {}
        for count in (few, many):
            make_pictures(folder / f"memory-{count}", count, settings.kind)
            _, peaks[count] = command(folder / f"memory-{count}", folder / f"out-{count}", settings)
            print(f"peak memory, {count:>6,} pictures   {peaks[count] / 2**20:10,.1f} MiB", flush=True)
        print(f"growth                        {peaks[many] / peaks[few] - 1:10.1%}  (at most 5 % is asked)")


def speed(folder: Path, settings: argparse.Namespace) -> None:
    """Images a second of the bare model, the command, and the bare model again."""
    import torch

    from pictish.data.images import find_images, fit_square, load_image
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.runtime import resolve_device

    tokenizer = Tokenizer.from_folder(settings.model, device=resolve_device(settings.device))
    images = find_images([folder / "speed"])
    ready = torch.from_numpy(np.stack([fit_square(load_image(i.path), tokenizer.image_size) for i in images]))

    def bare() -> float:
        start = time.perf_counter()
        for pixels in ready.split(settings.batch_size):
            tokenizer.tokenize_pixels(pixels, [(SIDE, SIDE)] * len(pixels))
        return len(ready) / (time.perf_counter() - start)

    tokenizer.tokenize_pixels(
        ready[: settings.batch_size], [(SIDE, SIDE)] * len(ready[: settings.batch_size])
    )
    rates = [bare()]
    started, _ = command(folder / "start", folder / "out-start", settings)
    rates.append(bare())
    seconds, _ = command(folder / "speed", folder / "out", settings)
    rates.append(bare())
    for when, rate in zip(("before", "between", "after"), rates, strict=True):
        print(f"bare model, {when:<18}{rate:8.1f} images/s", flush=True)
    rate = settings.pictures / (seconds - started)
    print(f"pictish tokenize              {rate:8.1f} images/s")
    print(
        f"command / bare model          {rate / np.mean(rates):8.2f}           (at least 0.8 is asked)",
        flush=True,
    )


def command(inputs: Path, out: Path, settings: argparse.Namespace) -> tuple[float, int]:
    """Run `pictish tokenize`: its own seconds, and its peak memory in bytes, the largest of its processes."""
    words = [sys.executable, "-m", "pictish", "tokenize", str(inputs), str(out), "--model", settings.model]
    words += ["--workers", settings.workers, "--batch-size", str(settings.batch_size)]
    words += ["--device", settings.device]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    found = re.search(r"images tokenized in ([\d.]+) s", said)
    if process.returncode or not found:
        raise SystemExit(f"pictish tokenize failed with exit code {process.returncode}: {said}")
    return float(found[1]), usage.ru_maxrss * 1024


def make_pictures(folder: Path, count: int, kind: str) -> None:
    """`count` images of 512 px that compress like photographs: soft shapes and a little grain."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(count):
        path = folder / f"{number:06d}.{kind}"
        if number >= DISTINCT:
            os.link(folder / f"{number % DISTINCT:06d}.{kind}", path)
            continue
        chance = np.random.default_rng(number)
        rough = Image.fromarray(chance.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        soft = np.asarray(rough.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = chance.normal(0, 6, (SIDE, SIDE, 1)).astype(np.float32)
        Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    main()
