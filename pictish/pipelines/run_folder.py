"""The folder of a training run: one writer, and settings that do not change under its checkpoints."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from pictish.configs import load, parse
from pictish.io.files import only_writer, write_atomic
from pictish.io.plain_yaml import to_yaml
from pictish.training.checkpoint import latest_checkpoint
from pictish.training.resume import differences, in_one_line


@contextmanager
def run_folder(run: Path, settings: BaseModel, quiet: bool) -> Iterator[None]:
    """Lock the run folder for this process and write the resolved config.

    ValueError when another process holds it, or when a step of it was trained with settings that decide other
    weights; a run without a step takes any.
    """
    logger = logging.getLogger("pictish")
    level = logger.level
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        if os.environ.get("RANK", "0") != "0":  # of several processes the first one writes
            yield
            return
        with only_writer(run):
            if (run / "config.yaml").exists():
                _may_replace(run, settings)
            write_atomic(run / "config.yaml", to_yaml(settings).encode())
            yield
    finally:
        logger.setLevel(level)


def _may_replace(run: Path, settings: BaseModel) -> None:
    """ValueError unless the run may take these settings; what earlier ones made before a step is removed."""
    written, now = run / "config.yaml", settings.model_dump(mode="json")
    latest = latest_checkpoint(run)
    if latest is None:
        shutil.rmtree(run / "text_tokenizer", ignore_errors=True)
        return
    before = parse(type(settings), load(written), str(written)).model_dump(mode="json")
    if changed := differences(before, now):
        raise ValueError(
            f"{run}: {latest.name} was trained with other settings: {in_one_line(changed)}; "
            "give those it was trained with, or another --run"
        )
