"""`pictish describe`: a picture to words."""

from pathlib import Path
from typing import Annotated

import typer

from pictish.commands.draw import Device, Model, given_picture


def run(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture to look at.")],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="What to say about it.")
    ] = None,
    *,
    features: Annotated[
        bool, typer.Option("--features", help="Look at continuous features instead of codes.")
    ] = False,
    most: Annotated[int, typer.Option(min=1, help="Text tokens at most.")] = 48,
    model: Model = "starter",
    device: Device = "auto",
) -> None:
    """Print a caption of IMAGE, or the answer to QUESTION."""
    picture = given_picture(image)
    from pictish.pipelines.describe import Describe
    from pictish.training.world import resolve_device

    describe = Describe.from_folder(model, resolve_device(device))
    print(describe.batch([picture], [question], continuous=features, most=most)[0])
