"""`pictish describe`: captions of images, or answers about them."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from pictish.commands import options
from pictish.commands.draw import given_picture
from pictish.data.words import check_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from pictish.evaluation.pictures import Broken, Picture

_RESULT = ("file_name", "text", "answer")  # of a line; its other keys are settings


def run(
    image: Annotated[
        Path,
        typer.Argument(metavar="IMAGE", help="Image, folder of images, or WebDataset shard to describe."),
    ],
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Question about each image.")
    ] = None,
    *,
    out: Annotated[
        Path | None,
        options.files(metavar="FILE", help="JSON Lines file for the texts (default: standard output)."),
    ] = None,
    model: options.Model = "starter",
    lm: Annotated[
        Path | None,
        options.files(
            metavar="DIR",
            help="Language model to use instead of the model's own; with an adaptor, any of transformers.",
        ),
    ] = None,
    adaptor: options.Adaptor = None,
    adaptor_folder: options.AdaptorFolders = None,
    draw_boxes: Annotated[
        Path | None,
        options.files(
            metavar="FILE", help="Also write IMAGE with the boxes of the answer (grounding models) as PNG."
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    features: Annotated[
        bool | None,
        options.sampling(
            "--features/--codes", help="Condition on continuous image features, or on discrete codes."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, options.sampling(metavar="N", min=1, max=1_000_000, help="Maximum number of text tokens.")
    ] = None,
    lemmas: Annotated[
        bool, options.sampling("--lemmas", help="Lemmatize nouns and verbs of the answer (needs spaCy).")
    ] = False,
    batch_size: options.BatchSize = 8,
    precision: options.Digits = options.Precision.float32,
    quantize: options.Bits = None,
    device: options.Device = "auto",
) -> None:
    """Print a caption of IMAGE, or the answer to QUESTION. Unset options use the model's defaults.

    For a folder or a shard, and with --out, each image is a line of JSON: file_name with text, or with
    question and answer. The same command resumes FILE. Images that cannot be read are named, the exit code is
    then 1.
    """
    from pictish.io.files import check_apart
    from pictish.io.finding import kind_of

    if question is not None:
        check_text("question", question)
    several = image.is_dir() or kind_of(image.name) == "shard"
    picture = None if several or out is not None else given_picture(image)
    if out is not None:
        check_apart(out, [image])
    if draw_boxes is not None:
        if picture is None:
            raise ValueError("--draw-boxes: draws on a single IMAGE, without --out")
        check_boxes_file(draw_boxes, overwrite=overwrite)
    from pictish.evaluation.pictures import PictureSource
    from pictish.io.model_folder import fingerprint
    from pictish.pipelines.adaptors import choose_adaptor
    from pictish.pipelines.dialogue import GENERAL, is_dialogue

    dialogue = is_dialogue(model)
    if dialogue:
        _refuse(lm=lm, features=features, lemmas=lemmas or None)
    folders = adaptor_folder or ()
    chosen = choose_adaptor(adaptor or (GENERAL if dialogue else None), model, folders)

    def describer() -> "Callable[[list[Image.Image]], list[str]]":
        """The loaded model."""
        where: dict[str, Any] = {"device": device, "dtype": precision.value, "quantize": quantize}
        if dialogue:
            from pictish.pipelines.dialogue import Dialogue

            talk = Dialogue.from_folder(model, adaptor_folders=folders, **where)
            return lambda pictures: talk.ask(
                pictures,
                [question] * len(pictures),
                adaptors=[adaptor] * len(pictures),
                max_new_tokens=max_new_tokens,
            )
        from pictish.pipelines.pipeline import Pipeline

        pipe = Pipeline.from_pretrained(model, lm=lm, **where)
        name = None if chosen is None else pipe.load_adaptor(chosen[1], chosen[0])
        return lambda pictures: pipe.describe(
            pictures, question, batch_size=batch_size, adaptor=name, **asked
        )

    asked: dict[str, Any] = {"features": features, "max_new_tokens": max_new_tokens, "lemmas": lemmas}
    if picture is not None:
        [text] = describer()([picture])
        print(text)
        if draw_boxes is not None:
            write_boxes(picture, text, draw_boxes)
        return
    source = PictureSource([image])
    facts = {"question": question, "lm": _weights(Path(model) / "lm" if dialogue else lm or model), **asked}
    facts |= {"lemmas": lemmas or None, "precision": precision.value, "quantize": quantize}
    if chosen is not None:
        facts |= {"adaptor": chosen[0], "adaptor_weights": fingerprint(chosen[1])}
    facts = {name: value for name, value in facts.items() if value is not None}
    done = _finished(out, facts) if out is not None and not overwrite else Counter()
    describe = describer()
    with _opened(out, overwrite) as file:
        wrong = _describe_all(
            source.decode(),
            describe,
            facts,
            done,
            batch_size,
            file,
            "" if out is None else f"; the same command adds the rest to {out}",
        )
    if wrong:
        raise typer.Exit(1)


def _weights(lm: str | Path) -> str:
    """Fingerprint of a language model, which may be a transformers folder."""
    from pictish.io.model_folder import CONFIG, fingerprint
    from pictish.lm.adapted import locate_base, weights_fingerprint

    folder = locate_base(lm)
    return fingerprint(folder) if (folder / CONFIG).is_file() else weights_fingerprint(folder)


def _refuse(**given: object) -> None:
    """ValueError for an option that a model asked in dialogues does not have."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')}: not for this model, which is asked in dialogues")


def check_boxes_file(file: Path, *, overwrite: bool) -> None:
    """ValueError for a file that is there, or is no PNG."""
    from pictish.io.files import printable

    if file.suffix.lower() != ".png":
        raise ValueError(f"--draw-boxes {printable(file)}: expected a .png name")
    if file.exists() and not overwrite:
        raise ValueError(f"{printable(file)} already exists; give --overwrite to replace it")


def write_boxes(picture: "Image.Image", answer: str, file: Path) -> None:
    """Write the image with the boxes of an answer, and tell how many there are on stderr."""
    from pictish.data.images import png_bytes
    from pictish.io.files import printable, write_atomic
    from pictish.lm.boxes import draw_boxes, parse_boxes

    found = parse_boxes(answer)
    write_atomic(file, png_bytes(draw_boxes(picture, found.boxes)))
    wrong = f", {found.wrong} lists of numbers are no boxes" if found.wrong else ""
    print(f"{printable(file)}: {len(found.boxes)} boxes{wrong}", file=sys.stderr)


def _describe_all(
    pictures: "Iterator[Picture | Broken]",
    describe: "Callable[[list[Image.Image]], list[str]]",
    facts: Mapping[str, Any],
    done: Counter[str],
    batch_size: int,
    file: IO[str],
    how_to_go_on: str,
) -> int:
    """Write a line for each image whose name is not `done`; how many could not be read."""
    from pictish.evaluation.pictures import Broken
    from pictish.io.files import printable
    from pictish.io.interrupt import in_units, stop_here

    wrong, written = 0, done.total()
    batch: list[Picture] = []
    field = "answer" if "question" in facts else "text"

    def write() -> int:
        texts = describe([picture.image for picture in batch])
        for picture, text in zip(batch, texts, strict=True):
            print(json.dumps({"file_name": picture.name, **facts, field: text}), file=file)
        file.flush()
        return len(batch)

    with in_units("batch"):
        for picture in pictures:
            if isinstance(picture, Broken):
                wrong += 1
                print(f"pictish: {printable(picture.name)}: {picture.error}", file=sys.stderr)
            elif done[picture.name]:
                done[picture.name] -= 1
            else:
                batch.append(picture)
            if len(batch) == batch_size:
                written, batch = written + write(), []
                stop_here(f"interrupted after {written:,} images{how_to_go_on}")
        if batch:
            written += write()
    if wrong:
        print(f"pictish: {written:,} images described, {wrong:,} could not be read", file=sys.stderr)
    return wrong


def _opened(out: Path | None, overwrite: bool) -> AbstractContextManager[IO[str]]:
    """The file that lines are added to; standard output stays open."""
    if out is None:
        return nullcontext(sys.stdout)
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.open("w" if overwrite else "a", encoding="utf-8")


def _finished(out: Path, facts: Mapping[str, Any]) -> Counter[str]:
    """How often each image is in a file of an earlier, interrupted command; a line cut short is taken off.

    ValueError for other content, and for texts that were written with other settings.
    """
    from pictish.io.files import read_regular_file

    if not out.exists():
        return Counter()
    blob = read_regular_file(out)
    whole = blob[: blob.rfind(b"\n") + 1]
    found: Counter[str] = Counter()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            name, was = row["file_name"], {key: row[key] for key in row if key not in _RESULT}
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{out}: line {number} is not of pictish describe; choose another --out"
            ) from None
        for key in sorted({*facts, *was}):
            if facts.get(key) != was.get(key):
                raise ValueError(
                    f"{out}: was written with {key.replace('_', ' ')} {was.get(key)}, and {facts.get(key)} "
                    "is asked for; give --overwrite to replace it, or another --out"
                )
        found[name] += 1
    if len(whole) < len(blob):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return found
