"""Compare an import of LaVIT's weights with numbers that the official code gave, stage by stage.

    python -m tools.compare_lavit FIXTURE

FIXTURE holds `checkpoint/` in the official layout (and `checkpoint_sharp/`, a tokenizer alone), the sizes
that tensors do not tell in `config.json`, `images/`, and what was recorded: `inputs.safetensors`,
`expected.safetensors`, `expected_text.json`. Seeds and sizes may be any. Ids must be equal, tensors within
1e-4, images within 1 of 255. Exits 1 when a stage is outside, or when something recorded was not compared.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pictish.pipelines.import_lavit import PARTS, Name, import_lavit
from pictish.tokenizer.dynamic import Tokenizer
from pictish.tokenizer.lavit import Heads

TOLERANCE = 1e-4  # of tensors
NOT_SUPPORTED = ("motion.",)  # recorded of Video-LaVIT
SHARP = "checkpoint_sharp"


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    right: bool
    difference: float | None = None  # the largest
    equal: str = ""  # of codes: how many are equal, of how many
    note: str = ""


class Recorded(Mapping[str, Any]):
    """What was recorded, and which of it was looked at."""

    def __init__(self, values: Mapping[str, Any]):
        self.values_, self.seen = dict(values), set[str]()

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return self.values_[name]

    def __iter__(self):
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def kinds(self, start: str) -> list[str]:
        """What follows `start` in the names that begin with it."""
        return [name.removeprefix(start) for name in self.values_ if name.startswith(start)]


@dataclass
class Run:
    """A fixture, and the models imported from it."""

    fixture: Path
    work: Path
    config: dict[str, Any] = field(init=False)
    inputs: Recorded = field(init=False)
    expected: Recorded = field(init=False)
    text: Recorded = field(init=False)

    def __post_init__(self) -> None:
        self.config = json.loads((self.fixture / "config.json").read_text("utf-8"))
        self.inputs = Recorded(load_file(self.fixture / "inputs.safetensors"))
        self.expected = Recorded(load_file(self.fixture / "expected.safetensors"))
        self.text = Recorded(json.loads((self.fixture / "expected_text.json").read_text("utf-8")))

    @property
    def heads(self) -> Heads:
        """What tensors do not tell."""
        dims = self.config["dims"]
        return Heads(dims["enc_heads"], dims["merger_heads"], dims["decoder_heads"])

    def model(self, checkpoint: str, parts: Iterable[Name]) -> Path:
        """The model folder of a checkpoint, imported when first asked for."""
        out = self.work / checkpoint
        if not out.exists():
            source = self.fixture / checkpoint
            import_lavit(source, out, parts=tuple(parts), heads=self.heads, progress=_Silent())
        return out

    @cached_property
    def folder(self) -> Path:
        """The model of `checkpoint`, all parts."""
        return self.model("checkpoint", PARTS)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return Tokenizer.from_folder(self.folder)

    @cached_property
    def pixels(self) -> Tensor:
        """The images as the tokenizer squashes them, uint8 (B, S, S, 3)."""
        from pictish.data.images import load_image

        paths = sorted((self.fixture / "images").iterdir())
        squares = [torch.from_numpy(self.tokenizer.resize(load_image(path))) for path in paths]
        return torch.stack(squares)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Of the images, where they do not matter."""
        return [(self.tokenizer.image_size,) * 2] * len(self.pixels)

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """The keep masks (B, N) bool that were recorded, by name."""
        return {name: self.expected[f"keep.{name}"].bool() for name in self.expected.kinds("keep.")}


Stage = Callable[[Run], Iterable[Row]]


def tensors(name: str, ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> Row:
    """Whether two tensors are alike within an absolute tolerance."""
    if ours.shape != theirs.shape:
        return Row(name, False, note=f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}")
    difference = float((ours.double() - theirs.double()).abs().max())
    return Row(name, difference <= tolerance, difference)


def same(name: str, ours: Any, theirs: Any) -> Row:
    """Whether ids, masks or words are equal."""
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    if ours.shape != theirs.shape:
        return Row(name, False, note=f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}")
    equal = int((ours == theirs).sum())
    return Row(name, equal == theirs.numel(), equal=f"{equal} of {theirs.numel()}")


class _Silent:
    def begin(self, task: str, total: int) -> None: ...

    def advance(self, steps: int) -> None: ...


def compare(fixture: Path, stages: Iterable[Stage], work: Path) -> list[Row]:
    """All rows of these stages, and one for what was recorded and not compared."""
    run = Run(fixture, work)
    rows = [row for stage in stages for row in stage(run)]
    recorded = [run.expected, run.text]
    left = sorted(name for store in recorded for name in store if name not in store.seen)
    unknown = [name for name in left if not name.startswith(NOT_SUPPORTED)]
    note = f"{len(unknown)} recorded and not compared, such as {unknown[0]}" if unknown else ""
    others = len(left) - len(unknown)
    rows.append(Row("everything recorded", not unknown, note=note or f"but {others} of Video-LaVIT"))
    return rows


def table(rows: Iterable[Row]) -> str:
    """The rows as text."""
    lines = [f"{'stage':44} {'largest difference':>18} {'codes equal':>14}  verdict"]
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.2e}"
        verdict = "ok" if row.right else "OUTSIDE"
        note = f"  ({row.note})" if row.note else ""
        lines.append(f"{row.name:44} {difference:>18} {row.equal:>14}  {verdict}{note}")
    return "\n".join(lines)


def all_stages() -> list[Stage]:
    """In the order of the computation."""
    from tools import compare_lavit_tokenizer

    stages = list(compare_lavit_tokenizer.STAGES)
    try:
        from tools import compare_lavit_generation
    except ImportError:
        return stages
    return stages + list(compare_lavit_generation.STAGES)


def main(description: str | None, rows_of: Callable[[Path, Path], Sequence[Row]]) -> int:
    """Read the arguments of a comparison and print the rows of a fixture; the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("fixture", type=Path)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        rows = rows_of(settings.fixture, Path(work))
    print(table(rows))
    wrong = sum(not row.right for row in rows)
    print(f"{len(rows)} stages, {wrong} outside")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(__doc__, lambda fixture, work: compare(fixture, all_stages(), work)))
