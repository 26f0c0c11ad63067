"""What an image costs: `pictish generate` from a cold start, with the model loaded, and its memory.

python -m tools.bench_generate --model starter

Prints, as medians: seconds of `pictish generate PROMPT` in a fresh process against a process that only
imports torch, transformers and diffusers, the two taking turns; seconds from a prompt to its image with
everything loaded; the most memory that the command held. Run it on a machine that does nothing else; where
that cannot be had, the CPU seconds of the processes say more than the clock.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = "import torch, transformers, diffusers"
PROMPT = "a red apple"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of the diffusion decoder; 0 is the preview")
    settings = parser.parse_args()
    model = settings.model if settings.model == "starter" else str(Path(settings.model).resolve())
    options = [] if settings.steps is None else ["--steps", str(settings.steps)]
    commands = {"imports": [sys.executable, "-c", IMPORTS]}
    runs: dict[str, list[tuple[float, float, int]]] = {"imports": [], "generate": []}
    with tempfile.TemporaryDirectory() as folder:
        words = ["generate", PROMPT, "--model", model, "--out", folder, "--overwrite", "--quiet"]
        commands["generate"] = [sys.executable, "-m", "pictish", *words, *options]
        for number in range(settings.rounds + 1):
            for name, command in commands.items():
                measured = one_run(command)
                if number:  # the first fills the caches of the disk
                    runs[name].append(measured)
    print(f"medians of {settings.rounds}, {os.cpu_count()} cores\n")
    for label, place in (("clock", 0), ("CPU", 1)):
        bare, whole = (
            statistics.median(run[place] for run in runs[name]) for name in ("imports", "generate")
        )
        print(
            f"{label:5}  imports {bare:5.2f} s   pictish generate {whole:5.2f} s   ratio {whole / bare:.2f}"
        )
    print(f"a picture, model loaded: {loaded(model, settings.steps, settings.rounds):.2f} s")
    print(f"peak memory of pictish generate: {max(run[2] for run in runs['generate']) / 1024:.0f} MB")


def one_run(command: list[str]) -> tuple[float, float, int]:
    """Seconds by the clock, seconds of the CPU, and most memory in KiB (as Linux says it) of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def loaded(model: str, steps: int | None, rounds: int) -> float:
    """Median seconds from a prompt to its image with everything loaded; the first does not count."""
    from pictish.pipelines.drawing import generate
    from pictish.pipelines.settings import GenerationConfig
    from pictish.pipelines.text_to_image import TextToImage

    drawer = TextToImage.from_folder(model, steps=steps)
    seconds = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        generate(drawer, [[PROMPT]], [number], GenerationConfig())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
