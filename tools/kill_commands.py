"""Kill every command that writes, many times, at random moments; count what was survived.

python tools/kill_commands.py --kills 20 --work /tmp/kills --out kills.json [--time-limit 3600] [--only NAME]

It can itself be stopped and started again: it goes on from kills.json, on what the last kill left below
--work. A kill counts when the command was at work as it came. Whatever must not be is an AssertionError that
names the file (tests/killing.py says what is checked). On a quiet machine a kill takes about six seconds, all
of 20 about half an hour.
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Kill until each command has had its share, or the time is over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--work", type=Path, required=True, help="folder for inputs and results")
    parser.add_argument("--out", type=Path, required=True, help="JSON file with the counts")
    parser.add_argument("--time-limit", type=float, default=7200, help="seconds")
    parser.add_argument("--only", help="one command")
    settings = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # as for the processes that are killed
    from pictish.io.files import write_atomic
    from tests.killing import CASES, Harness

    counts: dict[str, dict[str, int]] = {}
    if settings.out.exists():
        counts = json.loads(settings.out.read_bytes())
    until = time.monotonic() + settings.time_limit
    harness = Harness(settings.work)
    for name in [settings.only] if settings.only else CASES:
        one = counts.setdefault(name, {"kills": 0, "half_written_aside": 0, "finished": 0})
        chance = random.Random(f"{name} {one['kills']}")
        while one["kills"] < settings.kills and time.monotonic() < until:
            killed = harness.kill(name, chance)
            if killed.hit:
                one["kills"] += 1
                one["half_written_aside"] += killed.torn
            # so that there is always something left to be killed
            if not killed.hit or one["kills"] % 4 == 0 or one["kills"] == settings.kills:
                harness.finish(name)
                one["finished"] += 1
            write_atomic(settings.out, (json.dumps(counts, indent=1) + "\n").encode())
        print(name, one, flush=True)
    kills, wanted = sum(one["kills"] for one in counts.values()), settings.kills * len(counts)
    print(f"{kills} of {wanted} kills; {sum(one['finished'] for one in counts.values())} results bit-equal")


if __name__ == "__main__":
    main()
