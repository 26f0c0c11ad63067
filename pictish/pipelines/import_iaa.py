"""An official IAA checkpoint folder to a base, two adaptors and a vision tower in folders of their own.

    OUT/lm                      the Llama, a plain transformers folder with its text tokenizer
    OUT/adaptors/general        layers, table, norm, head and projector of the general adaptor
    OUT/adaptors/grounding      the same for boxes
    OUT/vision_tower            CLIP, a plain transformers folder
    OUT/config.yaml             how images and questions are put to them

As in import_lavit.py all names are accounted for first; then tensors are streamed, none is changed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pictish.data.importing import Meta, Part, Piece, Source
from pictish.io.files import one_line, read_regular_file, write_atomic
from pictish.io.model_folder import CONFIG, WEIGHTS
from pictish.io.plain_yaml import to_yaml
from pictish.pipelines.importing import CARD, Progress, Refused, check_out, staged

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, LlamaConfig

    from pictish.lm.iaa import Entry, Which

NEEDED_BY = "pictish describe"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json")
LARGEST_JSON = 1 << 26  # bytes
Tensors = dict[str, tuple[str, Meta]]  # name -> file below the source, and what it says of it


def import_iaa(
    folder: Path,
    out: Path,
    *,
    progress: Progress,
    heads: int | None = None,
    points: tuple[int, ...] | None = None,
    system: str | None = None,
) -> dict[str, int]:
    """Write `out`; returns the bytes of the tensors of each folder in it.

    `heads` of the CLIP tower and insertion `points` are in no file; by default those of the released models.
    `system` is the message before every dialogue. Interrupted, it resumes when called again. `Refused` for
    files that are missing, damaged or other than they should be; ValueError for `out` that exists.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give that of a downloaded IAA checkpoint")
    check_out(out)
    source = Source(folder)
    planned = _plan(source, heads, points)
    if source.wrong:
        raise Refused(folder, source.wrong)
    from pictish.lm.adapted import weights_fingerprint

    made = {part.name: part.size for part in planned}
    settings = {"heads": heads, "points": points, "system": system}
    with staged(source, planned, out, settings, progress, weights_fingerprint) as (staging, _):
        write_atomic(staging / CONFIG, to_yaml({"part": "dialogue", "format": 1, "system": system}).encode())
        write_atomic(staging / CARD, _card(folder, made).encode())
    return made


def _plan(source: Source, heads: int | None, points: tuple[int, ...] | None) -> list[Part]:
    """The folders to be made, the language model's first; what is wrong is noted in `source`."""
    from pictish.lm import iaa

    config = _read(source, "config.json", iaa.llama_config)
    tensors = _tensors(source)
    for name in TEXT_FILES:
        if not (source.folder / name).is_file():
            source.lacks(name, NEEDED_BY)
    if config is None or tensors is None:
        return []
    metas = {name: meta for name, (_, meta) in tensors.items()}
    try:
        tower = iaa.tower_config(metas, heads)
    except ValueError as error:
        source.wrong.append(f"{source.folder}: {one_line(error)}")
        return []
    groups: dict[str, dict[str, Entry]] = {"lm": iaa.base_entries(config)}
    placed: dict[Which, tuple[int, ...]] = {}
    for which in iaa.ADAPTORS:
        if not (count := iaa.insertion_layers(tensors, which)):
            source.wrong.append(f"{source.folder}: has no layers of the {which} adaptor")
            continue
        try:
            placed[which] = iaa.points_of(count, config.num_hidden_layers, points)
        except ValueError as error:
            source.wrong.append(f"{source.folder}: {which} adaptor: {one_line(error)}")
        groups[f"adaptors/{which}"] = iaa.adaptor_entries(which, count, config, tower.hidden_size)
    groups["vision_tower"] = iaa.tower_entries(tower)
    _account(source, metas, list(groups.values()))
    if source.wrong:
        return []
    finishers: dict[str, Any] = {"lm": partial(_finish_base, source.folder, config)}
    for which in placed:
        finishers[f"adaptors/{which}"] = partial(_finish_adaptor, which, placed[which], config, tower)
    finishers["vision_tower"] = partial(_finish_tower, tower)
    return [
        Part(name, _files(source, tensors, entries, whole=name != "lm"), finishers[name])
        for name, entries in groups.items()
    ]


def _read(source: Source, name: str, make: Any) -> Any:
    path = source.folder / name
    if not path.is_file():
        source.lacks(name, NEEDED_BY)
        return None
    try:
        return make(json.loads(read_regular_file(path, LARGEST_JSON)))
    except Exception as error:  # transformers has many ways to refuse settings
        source.wrong.append(f"{path}: {one_line(error)}")
        return None


def _tensors(source: Source) -> Tensors | None:
    """All tensors of all files; None when a file cannot be read."""
    index = next((name for name in INDEXES if (source.folder / name).is_file()), None)
    files: Iterable[str] | None = None
    listed: Mapping[str, str] = {}
    if index is not None:
        listed = _read(source, index, _weight_map) or {}
        files = sorted(set(listed.values()))
    elif single := next((name for name in SINGLE if (source.folder / name).is_file()), None):
        files = [single]
    if not files:
        source.lacks(SINGLE[0] if index is None else index, NEEDED_BY)
        return None
    found: Tensors = {}
    whole = True
    for file in files:
        table = source.table(file, NEEDED_BY)
        whole = whole and table is not None
        for name, meta in (table or {}).items():
            if name in found:
                source.wrong.append(f"{source.folder / file}: {name} is also in {found[name][0]}")
            found[name] = file, meta
    misplaced = [name for name, file in listed.items() if name in found and found[name][0] != file]
    if misplaced:
        source.wrong.append(f"{source.folder / str(index)}: {misplaced[0]} does not lie where it says")
    return found if whole else None


def _weight_map(raw: Any) -> dict[str, str]:
    places = raw["weight_map"]
    for file in places.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{file!r} is not the name of a file beside it")
    return dict(places)


def _account(source: Source, metas: Mapping[str, Meta], groups: "Sequence[Mapping[str, Entry]]") -> None:
    """Note every tensor that is missing, too many or of another shape, by kind."""
    from pictish.lm.iaa import RECOMPUTED

    expected = {name: entry.shape for entries in groups for name, entry in entries.items()}
    missing = [name for name in expected if name not in metas]
    unexpected = [name for name in metas if name not in expected and not name.endswith(RECOMPUTED)]
    misshapen = [
        f"{name} {metas[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in metas and metas[name].shape != shape
    ]
    for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            source.wrong.append(f"{source.folder}: {len(names)} {kind}: {', '.join(names[:6])}{more}")


def _files(
    source: Source, tensors: Tensors, entries: "Mapping[str, Entry]", *, whole: bool
) -> dict[str, list[Piece]]:
    """Where each tensor of a part goes: one file when `whole`, else one for each of the source's."""
    files = sorted({tensors[name][0] for name in entries})
    numbers = {file: number for number, file in enumerate(files, 1)}
    found: dict[str, list[Piece]] = {}
    for name, entry in entries.items():
        file, meta = tensors[name]
        one = whole or len(files) == 1
        ours = WEIGHTS if one else f"model-{numbers[file]:05d}-of-{len(files):05d}.safetensors"
        piece = Piece(entry.name, source.folder / file, (name,), entry.shape, meta.dtype)
        found.setdefault(ours, []).append(piece)
    return found


def _finish_base(folder: Path, config: "LlamaConfig", out: Path, fingerprint: str) -> None:
    from pictish.lm.lavit import write_index

    config.dtype = write_index(out, sorted(out.glob("model*.safetensors")))
    config.save_pretrained(out)
    for name in (*TEXT_FILES, "special_tokens_map.json"):
        if (folder / name).is_file():
            write_atomic(out / name, read_regular_file(folder / name, LARGEST_JSON))


def _finish_adaptor(
    which: str,
    points: tuple[int, ...],
    config: "LlamaConfig",
    tower: "CLIPVisionConfig",
    out: Path,
    base: str,
) -> None:
    from pictish.lm.adapted import AdaptorFolder

    settings = AdaptorFolder(
        kind=which,
        base=base,
        base_layers=config.num_hidden_layers,
        points=points,
        features=tower.hidden_size,
        projector="mlp",
    )
    write_atomic(out / CONFIG, to_yaml(settings).encode())


def _finish_tower(config: "CLIPVisionConfig", out: Path, fingerprint: str) -> None:
    config.architectures = ["CLIPVisionModel"]
    config.save_pretrained(out)


def _card(folder: Path, made: Mapping[str, int]) -> str:
    sizes = "\n".join(f"| `{name}/` | {size / 1e6:,.1f} MB |" for name, size in made.items())
    return f"""# IAA, imported into pictish

These are the weights of an official IAA checkpoint (arXiv 2408.12902,
github.com/360CVGroup/Inner-Adaptor-Architecture) under other names, from `{folder.resolve().name}`. They keep
the licences that they were published with: those of Llama 3, of CLIP and of IAA. Nothing was rounded.

| part | tensors |
|---|---|
{sizes}
"""
