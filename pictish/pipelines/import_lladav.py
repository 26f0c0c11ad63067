"""A LLaDA or LLaDA-V checkpoint folder to a pictish model folder."""

from dataclasses import dataclass
from pathlib import Path

from pictish.data.importing import Source
from pictish.io.files import write_atomic
from pictish.pipelines.importing import CARD, Progress, Refused, check_out, staged


@dataclass(frozen=True)
class Imported:
    """What was made."""

    parts: dict[str, int]  # name of the folder -> bytes of its tensors


def import_llada(folder: Path, out: Path, *, progress: Progress) -> Imported:
    """Write the model folder `out` of the LLaDA in `folder`, whichever names its tensors have.

    Raises `Refused` for files that are missing, damaged or other than they should be, and ValueError for
    `out` that exists, too little space, and a folder that is not there.
    """
    return _import(folder, out, "LLaDA", progress)


def import_lladav(
    folder: Path,
    out: Path,
    *,
    base: Path | None = None,
    vision_tower: Path | None = None,
    progress: Progress,
) -> Imported:
    """The same of a LLaDA-V, with its vision tower and projector.

    `base` is the folder of the LLaDA that a stage-1 folder, which holds `mm_projector.bin` alone, belongs to;
    `vision_tower` the SigLIP folder where the tower is not among the weights.
    """
    return _import(folder, out, "LLaDA-V", progress, base, vision_tower)


def _import(
    folder: Path,
    out: Path,
    kind: str,
    progress: Progress,
    base: Path | None = None,
    vision_tower: Path | None = None,
) -> Imported:
    from pictish.lm.lladav import plan_llada
    from pictish.lm.lladav_vision import PROJECTOR_FILE

    for path in filter(None, (folder, base, vision_tower)):
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; give that of a downloaded checkpoint")
    seeing = kind == "LLaDA-V"
    if seeing and base is None and _holds(folder, PROJECTOR_FILE) and not _holds(folder, "model"):
        raise ValueError(f"{folder}: holds a stage-1 projector alone; give the folder of its LLaDA as --base")
    check_out(out)
    source = Source(folder)
    others = {"base": base, "tower": vision_tower}
    beside = {name: Source(path) for name, path in others.items() if path is not None}
    part = plan_llada(source, seeing=seeing, **beside)
    faults = [fault for one in (source, *beside.values()) for fault in one.wrong]
    if part is None:
        raise Refused(folder, list(dict.fromkeys(faults)))
    with staged(source, [part], out, {"kind": kind}, progress) as (staging, _):
        made = Imported({part.name: part.size})
        write_atomic(staging / CARD, _card(folder, kind, part.size).encode())
    return made


def _holds(folder: Path, start: str) -> bool:
    """Whether a file of weights of this name, or beginning with it, lies in the folder."""
    return any(
        path.name.startswith((start, f"pytorch_{start}")) and path.suffix in (".bin", ".safetensors")
        for path in folder.iterdir()
    )


def _card(folder: Path, kind: str, size: int) -> str:
    source = {
        "LLaDA": "arXiv 2502.09992, github.com/ML-GSAI/LLaDA",
        "LLaDA-V": "arXiv 2505.16933, github.com/ML-GSAI/LLaDA-V",
    }[kind]
    return f"""# {kind}, imported into pictish

These are the weights of a {kind} checkpoint ({source}) under other names. They keep the licence that they
were published with, which is not pictish's: read it where you got them, and pass it on with them.

- from: `{folder.resolve().name}`, {size / 1e6:,.1f} MB of tensors
- nothing was rounded: tensors have the types of the checkpoint.
- `lm/` loads with transformers too: a Llama whose attention has no causal mask.
"""
