"""`pictish describe`: a caption of an image, or an answer about it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pictish.commands import options
from pictish.commands.draw import given_picture
from pictish.data.words import check_text

if TYPE_CHECKING:
    from PIL import Image


def run(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image to describe.")],
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Question about the image.")
    ] = None,
    *,
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
    precision: options.Digits = options.Precision.float32,
    quantize: options.Bits = None,
    device: options.Device = "auto",
) -> None:
    """Print a caption of IMAGE, or the answer to QUESTION. Unset options use the model's defaults."""
    if question is not None:
        check_text("question", question)
    picture = given_picture(image)
    if draw_boxes is not None:
        check_boxes_file(draw_boxes, overwrite=overwrite)
    from pictish.pipelines.adaptors import choose_adaptor
    from pictish.pipelines.dialogue import Dialogue, is_dialogue

    if is_dialogue(model):
        _refuse(lm=lm, features=features, lemmas=lemmas or None)
        folders = adaptor_folder or ()
        talk = Dialogue.from_folder(
            model, adaptor_folders=folders, quantize=quantize, device=device, dtype=precision.value
        )
        text = talk.ask([picture], [question], adaptors=[adaptor], max_new_tokens=max_new_tokens)[0]
    else:
        from pictish.pipelines.pipeline import Pipeline

        pipe = Pipeline.from_pretrained(model, device=device, dtype=precision.value, lm=lm, quantize=quantize)
        chosen = choose_adaptor(adaptor, model, adaptor_folder or ())
        name = None if chosen is None else pipe.load_adaptor(chosen[1], chosen[0])
        text = pipe.describe(
            picture, question, features=features, max_new_tokens=max_new_tokens, lemmas=lemmas, adaptor=name
        )
    print(text)
    if draw_boxes is not None:
        write_boxes(picture, text, draw_boxes)


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
    """Write the picture with the boxes of an answer, and tell how many there are on stderr."""
    import sys

    from pictish.data.images import png_bytes
    from pictish.io.files import printable, write_atomic
    from pictish.lm.boxes import draw_boxes, parse_boxes

    found = parse_boxes(answer)
    write_atomic(file, png_bytes(draw_boxes(picture, found.boxes)))
    wrong = f", {found.wrong} lists of numbers are no boxes" if found.wrong else ""
    print(f"{printable(file)}: {len(found.boxes)} boxes{wrong}", file=sys.stderr)
