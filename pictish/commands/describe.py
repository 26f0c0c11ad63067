"""`pictish describe`: a picture to words."""

from pathlib import Path
from typing import Annotated

import typer

from pictish.commands.draw import given_picture
from pictish.commands.options import Device, Digits, Model, Precision
from pictish.data.words import check_text


def run(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture to look at.")],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="What to say about it.")
    ] = None,
    *,
    features: Annotated[
        bool | None,
        typer.Option("--features/--codes", help="Look at continuous features, or at codes."),
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="Text tokens at most.")] = None,
    model: Model = "starter",
    lemmas: Annotated[
        bool, typer.Option("--lemmas", help="Nouns and verbs of an answer in their basic form; needs spaCy.")
    ] = False,
    precision: Digits = Precision.float32,
    device: Device = "auto",
) -> None:
    """Print a caption of IMAGE, or the answer to QUESTION. Settings left away are the model's own."""
    if question is not None:
        check_text("question", question)
    picture = given_picture(image)
    from pictish.pipelines.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(model, device=device, dtype=precision.value)
    print(pipe.describe(picture, question, features=features, max_new_tokens=most, lemmas=lemmas))
