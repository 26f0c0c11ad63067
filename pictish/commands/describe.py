"""`pictish describe`: a caption of an image, or an answer about it."""

from pathlib import Path
from typing import Annotated

import typer

from pictish.commands import options
from pictish.commands.draw import given_picture


def run(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image to describe.")],
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Question about the image.")
    ] = None,
    *,
    model: options.Model = "starter",
    features: Annotated[
        bool | None,
        options.sampling(
            "--features/--codes", help="Condition on continuous image features, or on discrete codes."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, options.sampling(metavar="N", min=1, help="Maximum number of text tokens.")
    ] = None,
    lemmas: Annotated[
        bool, options.sampling("--lemmas", help="Lemmatize nouns and verbs of the answer (needs spaCy).")
    ] = False,
    precision: options.Digits = options.Precision.float32,
    device: options.Device = "auto",
) -> None:
    """Print a caption of IMAGE, or the answer to QUESTION. Unset options use the model's defaults."""
    picture = given_picture(image)
    from pictish.pipelines.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(model, device=device, dtype=precision.value)
    print(pipe.describe(picture, question, features=features, max_new_tokens=max_new_tokens, lemmas=lemmas))
