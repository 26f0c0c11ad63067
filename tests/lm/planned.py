"""Training runs one after the other, each on so many forked processes over gloo: `planned.py SHARDS RUNS`.

RUNS is a JSON list: `run` (a name), `processes`, `settings`, and perhaps `like` (the run that it goes on
from a copy of), `stop` (the step after which all are killed) and `fsdp`.
"""

import json
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

from tests.forks import forked
from tests.lm.several import main


def together(shards: Path, wanted: dict) -> None:
    """All processes of a run."""
    if "like" in wanted:
        shutil.copytree(shards / wanted["like"], shards / wanted["run"])
    stop, fsdp = wanted.get("stop", 0), wanted.get("fsdp", False)
    work = partial(main, shards, shards / wanted["run"], stop, *wanted["settings"], fsdp=fsdp)
    codes = forked(wanted["processes"], work)
    assert set(codes) == {-signal.SIGKILL if stop else 0}, (wanted["run"], codes)


if __name__ == "__main__":
    for each in json.loads(sys.argv[2]):
        together(Path(sys.argv[1]), each)
