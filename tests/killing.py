"""Commands as processes of their own, killed at random moments of their work, and what must be true then.

What is not killed runs in this process, which has imported everything already.

After every kill: no half-written file under a final name. After the last start: the same files and bytes as
of an undisturbed run. `tests/test_killed.py` kills a few times, `tools/kill_commands.py` many times.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pictish.io.files import temp_path
from tests.tree import ROOT

LONGEST = 900  # seconds that a process may take on a busy machine
TEMPORARY = (".pictish-tmp", ".pictish-old")
JOURNALS = ("metrics.jsonl", "manifest.partial.jsonl")  # grow line by line; the last line may be cut
TIMES = ("pictures_per_second", "tokens_per_second", "waiting")
Words = list[str | Path]
TWO = ("--batch-size", "2")


@dataclass(frozen=True)
class Case:
    """A command that writes into OUT."""

    words: Callable[[Path, Path], Words]  # of the folder of inputs, and OUT
    again: tuple[str, ...] = ()  # more words for every start but the first
    growing: tuple[str, ...] = ()  # files that are whole at any moment, but other ones than in the end
    driver: bool = False  # started through this module, which puts small things in the place of large ones
    polite: bool = True  # stops between two units of its work when asked
    once: bool = False  # refuses an OUT that is there, which is whole then


def _train(part: str, *changes: str) -> Callable[[Path, Path], Words]:
    def words(given: Path, out: Path) -> Words:
        data = [f"data.train=[{given / 'train.tar'}]", f"data.validation=[{given / 'validation.tar'}]"]
        if part == "lm tiny/lm":
            data = [f"data.train={{pictures: {{paths: [{given / 'train.tar'}], caption: 0.5}}}}"]
            data += ["data.validation={}", f"tokenizer={given / 'model'}"]
        elif part.startswith("decoder"):
            data += [f"tokenizer={given / 'model'}"]
        kept = ["keep_checkpoints=1000", "--run", str(out), "--quiet"]
        return ["train", *part.split(), *data, *changes, *kept]

    return words


CASES: dict[str, Case] = {
    "tokenize": Case(
        lambda given, out: [
            "tokenize",
            given / "pictures",
            out,
            "--model",
            given / "model",
            "--batch-size",
            2,
        ]
    ),
    "tokenize to shards": Case(
        lambda given, out: [
            *("tokenize", given / "pictures", out, "--model", given / "model", "--batch-size", 2),
            *("--format", "shards", "--samples-per-shard", 5),
        ]
    ),
    "tokenize raw shards": Case(
        lambda given, out: ["tokenize", given / "raw", out, "--model", given / "model", *TWO]
    ),
    "detokenize": Case(
        lambda given, out: [
            "detokenize",
            given / "tokens",
            out,
            "--model",
            given / "model",
            "--batch-size",
            2,
        ]
    ),
    "data starter": Case(
        lambda given, out: ["data", "starter", out, "--workers", 0, "--cache", given / "npm"],
        growing=("manifest.json",),
        driver=True,
    ),
    "data tasks": Case(
        lambda given, out: ["data", "tasks", given / "facts", out], again=("--overwrite",), polite=False
    ),
    "train tokenizer": Case(_train("tokenizer tiny/tokenizer", "data.views=2", "checkpoint_every=5")),
    "train lm": Case(_train("lm tiny/lm", "checkpoint_every=2", "stages=[{name: a, steps: 40, warmup: 4}]")),
    "train preview": Case(_train("decoder tiny/preview", "checkpoint_every=5")),
    "train decoder": Case(_train("decoder tiny/decoder", "checkpoint_every=5")),
    "generate": Case(
        lambda given, out: [
            *("generate", "a red apple", "two pears", "--count", 6, "--size", 32, "--save-tokens"),
            *("--batch-size", 1, "--max-tokens", 8, "--out", out, "--model", given / "model"),
        ],
    ),
    "import lavit": Case(
        lambda given, out: [
            *("import", "lavit", given / "lavit" / "checkpoint", out, "--pictures", given / "few"),
            *("--part", "tokenizer", "--part", "understanding"),
        ],
        once=True,
    ),
}


@dataclass(frozen=True)
class Kill:
    """What became of one process."""

    hit: bool  # it was at work when the signal came
    torn: bool  # something half-written lay beside its place then
    code: int
    err: str


class Harness:
    """Inputs, an undisturbed result a case, and the results that are being killed, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.given = folder / "given"
        if not (self.given / "ready").exists():
            shutil.rmtree(self.given, ignore_errors=True)
            self.given.mkdir(parents=True)
            _prepare(self.given)
            (self.given / "ready").touch()

    def whole(self, name: str) -> Path:
        """The undisturbed result of a case, made once; `NAME.seconds` beside it says how long work took."""
        out = self.folder / "whole" / name
        note = out.with_name(f"{name}.seconds")
        if not note.exists():
            shutil.rmtree(out, ignore_errors=True)
            ended = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                begun = pool.submit(_wait_for_work, ended.is_set, out, {})
                try:
                    self._complete(name, out)
                finally:
                    ended.set()
            note.write_text(str(time.monotonic() - begun.result()))
        return out

    def out(self, name: str) -> Path:
        """Where the result lies that is being killed."""
        return self.folder / "killed" / name

    def kill(self, name: str, chance: random.Random, number: signal.Signals = signal.SIGKILL) -> Kill:
        """Start the command, on what the last one left, and send it a signal somewhere in its work."""
        whole, out = self.whole(name), self.out(name)
        seconds = float(whole.with_name(f"{name}.seconds").read_text())
        if CASES[name].once and out.exists():
            self.finish(name)
        before = _listing(out)
        process = self._start(name, out)
        begun = _wait_for_work(lambda: process.poll() is not None, out, before)
        until = begun + chance.uniform(0, seconds)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.002)
        hit = process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=LONGEST)
        torn = any(map(_is_temporary, map(Path, _listing(out))))
        self.check_whole(name)
        return Kill(hit, torn, process.returncode, err)

    def check_whole(self, name: str) -> None:
        """Every file under a final name is that of the undisturbed result, or at least can be read."""
        whole, out, growing = self.whole(name), self.out(name), CASES[name].growing
        for path in _files(out):
            place = path.relative_to(out)
            if _is_temporary(place) or path.name in JOURNALS:
                continue
            if path.name not in growing and (whole / place).exists():
                assert path.read_bytes() == (whole / place).read_bytes(), f"{name}: {place} is another"
            else:
                _read(path)

    def finish(self, name: str) -> None:
        """Start the command until it is done, compare with the undisturbed result, and begin afresh."""
        out = self.out(name)
        if not (CASES[name].once and out.exists()):
            self._complete(name, out)
        self.compare(name)
        for place in _places(out):
            shutil.rmtree(place)

    def compare(self, name: str) -> None:
        """All is there, and as in the undisturbed result."""
        out, whole = self.out(name), self.whole(name)
        ours, theirs = ({p.relative_to(f): p for p in _files(f)} for f in (out, whole))
        assert set(ours) == set(theirs), f"{name}: {sorted(map(str, set(ours) ^ set(theirs)))}"
        for place in ours:
            assert _content(ours[place]) == _content(theirs[place]), f"{name}: {place} is another"

    def _words(self, name: str, out: Path) -> list[str]:
        case = CASES[name]
        return [str(word) for word in (*case.words(self.given, out), *(case.again if out.exists() else ()))]

    def _complete(self, name: str, out: Path) -> None:
        """Run the command to its end."""
        if CASES[name].driver:  # it changes its process
            process = self._start(name, out)
            _, err = process.communicate(timeout=LONGEST)
            code = process.returncode
        else:
            from pictish.cli import main

            said = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                code = main(self._words(name, out))
            err = said.getvalue()
        assert code == 0, f"{name}: {err}"

    def _start(self, name: str, out: Path) -> "subprocess.Popen[str]":
        program = "tests.killing" if CASES[name].driver else "pictish"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", program, *self._words(name, out)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


def _wait_for_work(ended: Callable[[], bool], out: Path, before: dict[str, tuple[int, int]]) -> float:
    """The moment at which something in OUT, or OUT itself, is another than before."""
    deadline = time.monotonic() + LONGEST
    while not ended() and _listing(out) == before:
        assert time.monotonic() < deadline, "it does nothing"
        time.sleep(0.005)
    return time.monotonic()


def _listing(out: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in (*_places(out), *(below for place in _places(out) for below in place.rglob("*"))):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            status = path.stat()
            found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


def _places(out: Path) -> list[Path]:
    """OUT, and where one is made that is renamed as a whole."""
    return [place for place in (out, temp_path(out)) if place.exists()]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_temporary(path: Path) -> bool:
    return any(part.endswith(TEMPORARY) for part in path.parts)


def _content(path: Path) -> object:
    """Bytes, or of a log its lines without what depends on the machine."""
    if path.name != "metrics.jsonl":
        return path.read_bytes()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def _read(path: Path) -> None:
    """A file of a kind that can be read must be whole."""
    if path.suffix == ".json":
        json.loads(path.read_bytes())
    elif path.suffix == ".tar":
        from pictish.data.shards import read_shard

        assert list(read_shard(path))
    elif path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        load_file(path)
    else:
        raise AssertionError(f"{path}: nothing of the undisturbed result")


def _prepare(given: Path) -> None:
    """Small inputs of all cases, and a whole model of random weights."""
    import torch

    from pictish.data.token_folder import SUFFIX
    from pictish.decoder.config import PreviewConfig
    from pictish.decoder.preview import build_preview, save_preview
    from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
    from tests.commands.test_generate import speaking_model
    from tests.lavit import write_tokenizer
    from tests.recipes.starter.test_tasks import table, write
    from tests.shards import drawn_picture, write_shard
    from tests.tokenizer.conftest import tiny_network

    save_tokenizer(given / "model" / "tokenizer", tiny_network())
    tokenizer = Tokenizer.from_folder(given / "model")
    settings = PreviewConfig(width=16, blocks=1, smallest=8)
    head = build_preview(settings, tokenizer)
    torch.nn.init.normal_(head.leave[0].weight, std=0.05)
    save_preview(given / "model" / "decoder", head, settings, tokenizer.fingerprint)
    speaking_model(tokenizer).save(given / "model" / "lm", dtype=torch.float32)
    pictures = [drawn_picture(number) for number in range(48)]
    (given / "pictures").mkdir()
    (given / "tokens").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(given / "pictures" / f"{number:03d}.png")
    for number, tokens in enumerate(tokenizer.tokenize([one.convert("RGB") for one in pictures])):
        (given / "tokens" / f"{number:03d}{SUFFIX}").write_bytes(tokens.to_bytes())
    for number in range(6):
        write_shard(given / "raw" / f"{number}.tar", 8, first=8 * number)
    write_shard(given / "train.tar", 60)
    write_shard(given / "validation.tar", 8, first=1000)
    write(given / "facts", table())
    write_tokenizer(given / "lavit" / "checkpoint")
    (given / "few").mkdir()
    for number in range(2):
        shutil.copy(given / "pictures" / f"{number:03d}.png", given / "few")


def _drive(words: list[str]) -> int:
    """The program with a small catalogue that needs no npm."""
    from pictish import cli
    from pictish.recipes.starter.build import build
    from pictish.recipes.starter.catalogue import EmojiSet
    from tests.recipes.starter.test_build import Registry, a_catalogue, icon_set

    time.time = lambda: 0.0  # gzip writes it into the packages, which are pinned by their bytes
    registry = Registry()
    sets = tuple(
        EmojiSet(name, registry.add(f"@icons/{name}", icon_set(name, "#f0")), "MIT", "https://x.example")
        for name in ("one", "two", "three", "four")
    )
    catalogue = a_catalogue(registry, sets)
    small = {"catalogue": catalogue, "fetch": registry, "samples_per_shard": 2}
    build.__kwdefaults__ = {**(build.__kwdefaults__ or {}), **small}
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(_drive(sys.argv[1:]))
