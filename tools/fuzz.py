"""Give the readers hostile input, as much as there is time for; count it, and keep what was found.

python tools/fuzz.py --inputs 20000 --out fuzz.json [--time-limit 3600] [--only tokens] [--engine own]

Engines: `own` changes true files (tests/fuzzing.py); `hypothesis` makes them of pieces it chooses; `atheris`
(pip install 'pictish[fuzz]') is guided by coverage, in a process of its own. It goes on from fuzz.json when
started again. A found input is written to tests/corpus/READER/, where the tests read it ever after. On a
quiet machine 1,000 inputs take a second (tokens) to ten seconds (shard, config).
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "corpus"
MEASURED = 50  # the memory of one in this many inputs is measured, which is slow
PORTION = 500  # inputs between two lines of the result


def main() -> None:
    """Fuzz until each reader has had its share, or the time is over; exit code 1 when something was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=20_000, help="of each reader")
    parser.add_argument("--out", type=Path, required=True, help="JSON file with the counts")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds")
    parser.add_argument("--only", help="one reader")
    parser.add_argument("--engine", choices=["own", "hypothesis", "atheris"], default="own")
    settings = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from pictish.io.files import write_atomic
    from tests.fuzzing import TARGETS

    counts: dict[str, dict[str, Any]] = {}
    if settings.out.exists():
        counts = json.loads(settings.out.read_bytes())
    until = time.monotonic() + settings.time_limit
    engine = {"own": own, "hypothesis": from_hypothesis, "atheris": from_atheris}[settings.engine]
    for name in [settings.only] if settings.only else TARGETS:
        one = counts.setdefault(
            f"{name} {settings.engine}", {"inputs": 0, "refused": 0, "found": 0, "seconds": 0}
        )
        while one["inputs"] < settings.inputs and time.monotonic() < until:
            begun = time.monotonic()
            engine(name, min(PORTION, settings.inputs - one["inputs"]), one)
            one["seconds"] = round(one["seconds"] + time.monotonic() - begun, 1)
            write_atomic(settings.out, (json.dumps(counts, indent=1) + "\n").encode())
        print(name, one, flush=True)
    found = sum(one["found"] for one in counts.values())
    print(f"{sum(one['inputs'] for one in counts.values()):,} inputs, {found} found")
    sys.exit(1 if found else 0)


def own(name: str, number: int, one: dict[str, Any]) -> None:
    """So many more inputs of our own changes; each number has its own seed, so that none comes twice."""
    from tests.fuzzing import TARGETS, changed

    with tempfile.TemporaryDirectory(dir=_in_memory()) as folder:
        for index in range(one["inputs"], one["inputs"] + number):
            blob = changed(TARGETS[name], random.Random(f"{name} {index}"))
            _give(name, blob, Path(folder), one, measured=index % MEASURED == 0)


def from_hypothesis(name: str, number: int, one: dict[str, Any]) -> None:
    """So many more inputs that hypothesis puts together of pieces of true ones and of anything."""
    from hypothesis import HealthCheck, Phase, given, seed
    from hypothesis import settings as configured
    from hypothesis import strategies as st

    from tests.fuzzing import TARGETS

    target = TARGETS[name]
    seeds = target.seeds()
    piece = st.sampled_from(seeds).flatmap(
        lambda blob: st.tuples(*[st.integers(0, len(blob))] * 2).map(lambda at: blob[min(at) : max(at)])
    )
    pieces = st.one_of(piece, st.binary(max_size=64), st.sampled_from(target.words))
    inputs = st.lists(pieces, max_size=6).map(b"".join)

    with tempfile.TemporaryDirectory(dir=_in_memory()) as folder:

        @seed(one["inputs"])
        @configured(
            max_examples=number,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs, st.booleans())
        def run(blob: bytes, mended: bool) -> None:
            if mended:
                blob = target.mend(bytearray(blob), random.Random(0))
            _give(name, blob, Path(folder), one)

        before = one["inputs"]
        run()
        one["inputs"] = max(one["inputs"], before + number)  # it stops early where it has tried everything


def from_atheris(name: str, number: int, one: dict[str, Any]) -> None:
    """So many more inputs of atheris, in a process of its own, since it never comes back."""
    with tempfile.TemporaryDirectory(dir=_in_memory()) as folder:
        for index, blob in enumerate(_targets()[name].seeds()):
            (Path(folder) / f"seed-{index}").write_bytes(blob)
        code = f"from tools.fuzz import atheris_process; atheris_process({name!r})"
        words = [
            f"-runs={number}",
            f"-seed={one['inputs'] + 1}",
            "-max_len=20000",
            f"-artifact_prefix={folder}/crash-",
        ]
        done = subprocess.run(
            [sys.executable, "-c", code, *words, folder], cwd=ROOT, capture_output=True, text=True
        )
        for crash in Path(folder).glob("crash-*"):
            _keep(name, crash.read_bytes(), done.stderr[-2000:], one)
        if done.returncode and not list(Path(folder).glob("crash-*")):
            raise RuntimeError(done.stderr[-2000:])
    one["inputs"] += number


def atheris_process(name: str) -> None:
    """What runs in the process of `from_atheris`."""
    import atheris

    with atheris.instrument_imports(include=["pictish"]):
        from tests.fuzzing import TARGETS, check

        TARGETS[name].seeds()
    folder = Path(tempfile.mkdtemp(dir=_in_memory()))
    atheris.Setup(sys.argv, lambda blob: check(TARGETS[name], blob, folder))
    atheris.Fuzz()


def _targets() -> dict[str, Any]:
    from tests.fuzzing import TARGETS

    return dict(TARGETS)


def _give(name: str, blob: bytes, folder: Path, one: dict[str, Any], measured: bool = False) -> None:
    from tests.fuzzing import Found, check

    one["inputs"] += 1
    try:
        said = check(_targets()[name], blob, folder, measured=measured)
    except Found as found:
        _keep(name, blob, str(found), one)
    else:
        one["refused"] += said is not None


def _keep(name: str, blob: bytes, why: str, one: dict[str, Any]) -> None:
    one["found"] += 1
    path = CORPUS / name / hashlib.sha256(blob).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(blob)
    print(f"{name}: {path.name}: {why[:300]}", flush=True)


def _in_memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    main()
