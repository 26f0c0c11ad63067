"""An official LaVIT checkpoint folder to a pictish model folder.

First every file's table of contents is compared with what it should hold, then tensors are streamed part by
part into a folder beside OUT, which takes its name when all is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pictish.data.importing import Part, Source
from pictish.io.files import write_atomic
from pictish.pipelines.importing import CARD, Progress, Refused, check_out, staged

if TYPE_CHECKING:
    from PIL import Image

    from pictish.tokenizer.agreement import Agreement
    from pictish.tokenizer.config import TokenizerConfig
    from pictish.tokenizer.lavit import Heads

Name = Literal["tokenizer", "understanding", "lm", "decoder", "decoder-lowres"]
PARTS: tuple[Name, ...] = ("tokenizer", "understanding", "lm", "decoder", "decoder-lowres")
Mode = Literal["exact", "gather"]
VIDEO = (
    "language_model_sft",
    "image_detokenizer",
    "video_detokenizer",
    "motion_tokenizer.bin",
    "video_3d_unet.bin",
)  # what is in a Video-LaVIT folder and in no other
_FIRST: dict[Name, tuple[str, ...]] = {
    "understanding": ("language_model/visual_weight.bin",),
    "lm": ("language_model/config.json", "language_model/tokenizer.model"),
    "decoder": ("visual_tokenizer/highres_tokenizer_decoder.bin", "highres_pixel_decoding"),
    "decoder-lowres": ("visual_tokenizer/tokenizer_decoder.bin", "pixel_decoding"),
}
_NEEDED_BY: dict[Name, str] = {
    "understanding": "pictish describe",
    "lm": "pictish generate",
    "decoder": "pictish detokenize",
    "decoder-lowres": "pictish detokenize --lowres",
}


@dataclass(frozen=True)
class Imported:
    """What was made."""

    parts: dict[str, int]  # name of the folder -> bytes of its tensors
    tokenizer: str  # fingerprint
    agreement: "Agreement | None"  # None: no images to measure it on


def import_lavit(
    folder: Path,
    out: Path,
    *,
    progress: Progress,
    parts: Sequence[Name] = PARTS,
    mode: Mode = "exact",
    heads: "Heads | None" = None,
    pictures: "Sequence[Image.Image]" = (),
) -> Imported:
    """Write the model folder `out` with these parts of the checkpoint `folder`, and always its tokenizer.

    On `pictures` the two modes of the merger are compared. Interrupted, it resumes when called again. Raises
    `Refused` for files that are missing, damaged or other than they should be, and ValueError for `out` that
    exists, too little space, and a folder that is no LaVIT checkpoint.
    """
    _check(folder, out)
    source = Source(folder)
    planned, config = _plan(source, [name for name in PARTS if name in {*parts, "tokenizer"}], mode, heads)
    if source.wrong or config is None:
        raise Refused(folder, source.wrong)
    settings = {"mode": mode, "config": config.model_dump(mode="json")}
    with staged(source, planned, out, settings, progress) as (staging, name):
        agreement = _measure(staging / "tokenizer", config, pictures, progress)
        made = Imported({part.name: part.size for part in planned}, name, agreement)
        write_atomic(staging / CARD, model_card(folder, made, mode).encode())
    return made


def _check(folder: Path, out: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give that of a downloaded LaVIT checkpoint")
    video = [name for name in VIDEO if (folder / name).exists()]
    if video:
        raise ValueError(
            f"{folder}: a Video-LaVIT checkpoint, by its {video[0]}; they are not supported yet, "
            "LaVIT-7B-v1 and LaVIT-7B-v2 are"
        )
    known = ("visual_tokenizer", "language_model", "pixel_decoding", "highres_pixel_decoding")
    if not any((folder / name).is_dir() for name in known):
        raise ValueError(f"{folder}: no LaVIT checkpoint, it has none of the folders {', '.join(known)}")
    check_out(out)


def _plan(
    source: Source, parts: Sequence[Name], mode: Mode, heads: "Heads | None"
) -> "tuple[list[Part], TokenizerConfig | None]":
    """The parts to be made; what is wrong is noted in `source`, in as many parts as can be looked at."""
    from pictish.tokenizer.lavit import OVERRIDE, find_heads, plan_tokenizer, plan_understanding

    found = plan_tokenizer(source, heads, mode)
    if found is None:  # the others cannot be planned, but what they lack can be listed
        for name in parts:
            for file in _FIRST.get(name, ()):
                if not (source.folder / file).exists():
                    source.lacks(file, _NEEDED_BY[name])
        return [], None
    tokenizer, config = found
    heads = heads or find_heads(source.folder, config.width)
    assert heads is not None
    planned: list[Part | None] = [tokenizer]
    for name in parts:
        match name:
            case "understanding":
                planned.append(plan_understanding(source, config))
            case "lm":
                from pictish.lm.lavit import plan_language

                planned.append(
                    plan_language(
                        source,
                        codes=config.quantizer.codes,
                        max_tokens=config.encoder.grid**2,
                        features=config.width,
                        override=OVERRIDE,
                    )
                )
            case "decoder" | "decoder-lowres":
                from pictish.decoder.lavit import plan_decoder

                which: Literal["highres", "lowres"] = "highres" if name == "decoder" else "lowres"
                planned.append(plan_decoder(source, which, config, heads))
    return [part for part in planned if part is not None], config


def _measure(
    folder: Path, config: "TokenizerConfig", pictures: "Sequence[Image.Image]", progress: Progress
) -> "Agreement | None":
    if not pictures:
        return None
    import numpy as np
    import torch

    from pictish.data.images import fit_square
    from pictish.tokenizer.agreement import measure_agreement

    side = config.encoder.image_size
    pixels = np.stack([fit_square(picture.convert("RGB"), side, exact=True) for picture in pictures])
    progress.begin("comparing the merger's modes", len(pixels))
    return measure_agreement(folder, torch.from_numpy(pixels), lambda: progress.advance(1))


def model_card(folder: Path, made: Imported, mode: Mode) -> str:
    """What lies in an imported folder, where it comes from, whose it is, and what was measured."""
    sizes = "\n".join(f"| `{name}/` | {size / 1e6:,.1f} MB |" for name, size in made.parts.items())
    measured = "not measured: there were no images"
    if made.agreement is not None:
        agreement = made.agreement
        measured = (
            f"on {agreement.pictures} images {100 * agreement.equal:.1f} % of {agreement.codes} codes are\n"
            f"  those of `exact`, in the image with fewest {100 * agreement.worst:.1f} %; merged rows, of "
            f"about unit\n  variance, differ by at most {agreement.furthest:.2g}"
        )
    return f"""# LaVIT, imported into pictish

These are the weights of an official LaVIT checkpoint (arXiv 2309.04669, github.com/jy0205/LaVIT) under other
names. They keep the licence that they were published with, which is not pictish's: read it where you got
them, and pass it on with them.

- from: `{folder.resolve().name}`; tokenizer: {made.tokenizer}
- merger: `{mode}`. The official computation has masks that leak, through which every row sees all others a
  little. `exact` computes that; `gather` leaves dropped rows away and is an approximation. Measured at
  import: {measured}.
- nothing was rounded: tensors have the types of the checkpoint, and are computed in float32.

| part | tensors |
|---|---|
{sizes}
"""
