"""Rates of `pictish tokenize` on raw shards, and whether time and bytes are linear in the number of images.

python tools/bench_scale.py RESULT.json                          100 to 10,000 images, 1 and 2 processes
python tools/bench_scale.py RESULT.json --images 20 40 --processes 1  a quick look at whether it works

Every run is a process of its own on fresh output, and its rate is the command's own report. The result is
written after every run; started again, the runs it holds already are not repeated. --minutes stops before the
first run that begins later. Run it on a machine that does nothing else.
"""

import argparse
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIDE = 256
DISTINCT = 200  # further images repeat these under other keys


def main() -> None:
    """Measure, and print what docs/scale.md shows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("--pictures", type=int, nargs="+", default=[100, 300, 1000, 3000, 10_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--per-shard", type=int, default=50)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", default="1", help="decoding processes of each process")
    parser.add_argument("--minutes", type=float, default=120)
    settings = parser.parse_args()
    deadline = time.monotonic() + 60 * settings.minutes
    result = json.loads(settings.result.read_text()) if settings.result.exists() else {"runs": []}
    result |= {"cpu": processor(), "cores": os.cpu_count(), "per_shard": settings.per_shard}
    known = {(run["pictures"], run["processes"]) for run in result["runs"]}
    with tempfile.TemporaryDirectory(prefix="pictish-bench-") as folder:
        for pictures in settings.pictures:
            raw = Path(folder, f"raw-{pictures}")
            for processes in settings.processes:
                if (pictures, processes) in known:
                    continue
                if time.monotonic() > deadline:
                    print("the time is up; start it again to go on")
                    return
                if not raw.exists():
                    make_shards(raw, pictures, settings.per_shard)
                result["runs"].append(measure(raw, Path(folder, "out"), pictures, processes, settings))
                write(settings.result, result)
            shutil.rmtree(raw, ignore_errors=True)
    result["linear"] = {str(count): linear(result["runs"], count) for count in settings.processes}
    write(settings.result, result)
    print(json.dumps(result["linear"], indent=1))


def measure(
    raw: Path, out: Path, pictures: int, processes: int, settings: argparse.Namespace
) -> dict[str, Any]:
    """One run of the command; what it reports, the whole command's seconds, and the bytes it left."""
    report = out.with_suffix(".json")
    words = ["tokenize", raw, out, "--model", settings.model, "--device", settings.device]
    words += ["--workers", settings.workers, "--processes", processes, "--report", report, "--quiet"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "pictish", *map(str, words)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    whole = time.perf_counter() - start
    facts = json.loads(report.read_text())
    run = {
        "pictures": pictures,
        "processes": processes,
        "seconds": facts["seconds"],
        "command_seconds": whole,
        "pictures_per_second": facts["pictures_per_second"],
        "tokens": facts["tokens"],
        "shard_bytes": sum(path.stat().st_size for path in out.glob("*.tar")),
        "source_bytes": sum(path.stat().st_size for path in raw.glob("*.tar")),
    }
    shutil.rmtree(out)
    print(
        f"{pictures:>7,} pictures, {processes} at once: {run['pictures_per_second']:8.1f} a second",
        flush=True,
    )
    return run


def linear(runs: list[dict[str, Any]], processes: int) -> dict[str, float]:
    """A line through the runs, seconds = start + images / rate, and how far they lie from it at most."""
    own = [run for run in runs if run["processes"] == processes]
    if len(own) < 2:
        return {}
    counts = np.array([run["pictures"] for run in own], dtype=float)
    seconds = np.array([run["command_seconds"] for run in own])
    weights = 1 / seconds  # relative errors count, not those of the longest run alone
    slope, start = np.polyfit(counts, seconds, 1, w=weights)
    each = np.array([run["shard_bytes"] for run in own]) / counts
    return {
        "start_seconds": float(start),
        "pictures_per_second": float(1 / slope),
        "worst_relative_error": float(np.abs(seconds / (start + slope * counts) - 1).max()),
        "bytes_per_picture": float(each[-1]),
        "bytes_per_picture_spread": float(each.max() / each.min() - 1),
    }


def make_shards(folder: Path, pictures: int, per_shard: int) -> None:
    """JPEGs that compress like photographs, with a caption each."""
    from PIL import Image

    from pictish.data.shards import ShardWriter

    blobs = []
    for number in range(min(pictures, DISTINCT)):
        chance = np.random.default_rng(number)
        rough = Image.fromarray(chance.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        soft = np.asarray(rough.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = chance.normal(0, 6, (SIDE, SIDE, 1)).astype(np.float32)
        buffer = io.BytesIO()
        Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        blobs.append(buffer.getvalue())
    with ShardWriter(folder, per_shard) as writer:
        for number in range(pictures):
            caption = f"picture {number}".encode()
            writer.write(f"{number:08d}", {"jpg": blobs[number % len(blobs)], "txt": caption})


def processor() -> str:
    """Name of the processor, where Linux tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write(path: Path, result: dict[str, Any]) -> None:
    """The result so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, sort_keys=True, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
