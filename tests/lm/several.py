"""One process of a training run under torchrun: `several.py SHARDS RUN STOP`, killed after STOP steps."""

import os
import signal
import sys
from pathlib import Path

from pictish.lm import documents
from pictish.lm.train import train
from tests.lm.test_train import IMAGE_TOKENS, config_for


def main(shards: Path, run: Path, stop: int) -> None:
    """Train, noting the number of every sample used."""
    used = (run.parent / f"{run.name}-used-{os.environ['RANK']}.txt").open("a", buffering=1)
    make = documents.Maker.make

    def noting(self, sample, slot, seen):
        used.write(f"{slot.number} {sample.source}/{sample.key}\n")
        return make(self, sample, slot, seen)

    documents.Maker.make = noting

    def progress(done: int, total: int) -> None:
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    config = config_for(shards, "stages=[{name: only, steps: 10, warmup: 2}]")
    train(config, run, IMAGE_TOKENS, "cpu", progress=progress)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
