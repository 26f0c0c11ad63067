"""What imports of third-party checkpoints share: parts written beside OUT, which take its place."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pictish.data.importing import Part, Source, digest, free_bytes, write_pieces
from pictish.io.files import only_writer, temp_path, write_atomic
from pictish.io.interrupt import in_units, stop_here
from pictish.io.model_folder import fingerprint

SPARE = 64 << 20  # bytes for what is no tensor
PLAN = "plan.sha256"  # in the unfinished folder: what it is to become
CARD = "README.md"


class Progress(Protocol):
    """Is notified of the work as it is done."""

    def begin(self, task: str, total: int) -> None:
        """A task of this many steps begins."""

    def advance(self, steps: int) -> None:
        """This many more of them are done."""


class Refused(ValueError):
    """A checkpoint with faults; `faults` tells each of them in a line."""

    def __init__(self, folder: Path, faults: Sequence[str]):
        self.faults = tuple(faults)
        what = self.faults[0] if len(faults) == 1 else f"{folder}: {len(faults)} faults, listed above"
        super().__init__(f"{what}; nothing was written")


def check_out(out: Path) -> None:
    """ValueError unless `out` is new, or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists already; choose another folder")


@contextmanager
def staged(
    source: Source,
    planned: Sequence[Part],
    out: Path,
    settings: Mapping[str, object],
    progress: Progress,
    name_of: Callable[[Path], str] = fingerprint,
) -> Iterator[tuple[Path, str]]:
    """Write the planned parts beside `out`; inside the block, that folder and the first part's fingerprint.

    `name_of` gives that fingerprint, which later parts are finished with. When the block ends well, the
    folder becomes `out`. Interrupted, it resumes when called again with the same files and `settings`.
    ValueError for too little space.
    """
    staging = temp_path(out)
    purpose = digest(source, planned, settings)
    if not (staging / PLAN).is_file() or (staging / PLAN).read_text() != purpose:
        shutil.rmtree(staging, ignore_errors=True)  # unfinished, and of something else
    _check_space(staging, planned)
    with only_writer(staging):
        write_atomic(staging / PLAN, purpose.encode())
        progress.begin("writing", sum(part.size for part in planned))
        name = ""
        with in_units("file"):
            for part in planned:
                for file, pieces in part.weights.items():
                    stop_here(
                        "interrupted; files that are complete are kept, and the same command resumes there"
                    )
                    write_pieces(staging / part.name / file, pieces, progress.advance)
                part.finish(staging / part.name, name)
                name = name or name_of(staging / part.name)
        yield staging, name
        (staging / PLAN).unlink()
        if out.exists():
            out.rmdir()  # empty, as was seen
        staging.rename(out)


def _check_space(staging: Path, planned: Sequence[Part]) -> None:
    missing = [
        piece.size
        for part in planned
        for file, pieces in part.weights.items()
        if not (staging / part.name / file).exists()
        for piece in pieces
    ]
    needed, free = sum(missing) + SPARE, free_bytes(staging)
    if needed > free:
        raise ValueError(
            f"{staging.parent}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; make room "
            "or choose another place"
        )
