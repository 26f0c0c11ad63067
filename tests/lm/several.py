"""One process of a training run under torchrun: `several.py SHARDS RUN STOP [KEY=VALUE ...]`.

All are killed after STOP steps.

It writes a line for each document of each step: the step, and which sample of which epoch it was.
"""

import os
import signal
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from pictish.lm import documents
from pictish.lm import train as loop
from tests.lm.test_train import IMAGE_TOKENS, config_for

STAGES = (
    "stages=[{name: all, steps: 6, warmup: 2},"
    " {name: rows, steps: 4, warmup: 0, trainable: [language.model.layers.1.*, new rows]}]"
)


def main(shards: Path, run: Path, stop: int, *overrides: str, fsdp: bool = False) -> None:
    """Train, noting the samples of every step when it is done."""
    used = (run.parent / f"{run.name}-used-{os.environ.get('RANK', '0')}.txt").open("a", buffering=1)
    made: dict[int, tuple[object, str]] = {}  # by id of the document's ids, kept so that no other has it
    latest: list[str] = []
    make, pack = documents.Maker.make, loop.pack

    def noting(self, sample, slot, seen):
        document = make(self, sample, slot, seen)
        made[id(document.ids)] = document, f"{slot.epoch} {sample.source}/{sample.key}"
        return document

    def packing(rows, length):
        latest.extend(made[id(document.ids)][1] for row in rows for document in row)
        return pack(rows, length)

    def progress(done: int, total: int) -> None:
        used.writelines(f"{done} {name}\n" for name in latest)
        latest.clear()
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    @torch.no_grad()
    def show(model, step: int) -> None:
        """What the whole model says, not by way of its forward, which gathers the weights of shards."""
        embedded = model.embed(torch.arange(8)[None])
        logits = model.language(inputs_embeds=embedded, use_cache=False).logits
        with (run.parent / f"{run.name}-shown.txt").open("a") as file:
            file.write(f"{step} {float(logits.square().mean())}\n")

    config = config_for(shards, *(overrides or [STAGES]))
    vectors = torch.randn(IMAGE_TOKENS.codes, 6, generator=torch.Generator().manual_seed(8))
    known = {"progress": progress, "show": show, "code_vectors": vectors}
    with used, patch.object(documents.Maker, "make", noting), patch.object(loop, "pack", packing):
        loop.train(config, run, IMAGE_TOKENS, "cpu", **known, fsdp=fsdp)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
