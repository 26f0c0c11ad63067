"""What `pictish generate` and `pictish edit` share: their options, as requests.

Their options are parameters of the two functions, for typer; here they are read by name from typer's context,
so that an option that both have is handled once.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from pictish.commands.options import Precision

if TYPE_CHECKING:
    from PIL import Image

    from pictish.data.provenance import Origin, Request
    from pictish.pipelines.image_requests import Files
    from pictish.pipelines.settings import GenerationConfig

LARGEST_COUNT = 100_000  # images of a prompt


def given_picture(path: Path) -> "Image.Image":
    """The RGB image a user named; ValueError says which file is none, OSError which cannot be read."""
    from pictish.data.images import load_image
    from pictish.io.files import printable

    try:
        return load_image(path)
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}") from error


def origin_of(file: Path | None, command: Literal["generate", "edit"]) -> "Origin | None":
    """How the image of `--like` was drawn; ValueError when it was by the other command."""
    if file is None:
        return None
    from pictish.data.provenance import read_origin
    from pictish.io.files import printable

    origin = read_origin(file)
    if origin.command != command:
        raise ValueError(f"{printable(file)}: made by pictish {origin.command}; use its --like")
    return origin


def asked(
    ctx: typer.Context, prompt: str | None, given: "Sequence[Image.Image]", origin: "Origin | None"
) -> "Request":
    """The first image that the options of `ctx` ask for; what they leave out is as in `origin`.

    ValueError for a setting out of range, and for other given images than those of `origin`.
    """
    from pictish.configs import parse
    from pictish.data.provenance import Request, digest_of
    from pictish.data.words import check_text
    from pictish.pipelines.image_requests import decoder_of

    options: dict[str, Any] = {
        name: value.value if isinstance(value, Precision) else value
        for name, value in ctx.params.items()
        if name in Request.model_fields
    }
    pictures = tuple(map(digest_of, given))
    if origin is not None:
        left = {name for name in options if is_default(ctx, name)}
        options |= {name: getattr(origin, name) for name in left}
        if decoder_of(options["steps"], options["lowres"]) != decoder_of(origin.steps, origin.lowres):
            # the other decoder has settings of its own
            options |= dict.fromkeys(left & {"pixel_guidance", "scheduler"})
        if pictures and not origin.pictures and "best_of" in left:
            options["best_of"] = None  # prompts with images have no candidates
        if pictures and origin.pictures and pictures != origin.pictures:
            raise ValueError(
                "the input image differs from the one that the --like file was made from; give the same one"
            )
        pictures = pictures or origin.pictures
    for name, text in (("prompt", prompt), ("style", options.get("style"))):
        if text is not None:
            check_text(name, text)
    if options.get("style") is not None and not (prompt or "").strip():
        raise ValueError("--style is appended to a PROMPT; give one")
    options |= {"command": ctx.info_name, "prompt": prompt, "pictures": pictures}
    return parse(Request, options, ctx.command_path)


def with_seeds(request: "Request", count: int) -> "list[Request]":
    """The request again and again, each with the next seed; ValueError for too many, or too large a seed."""
    if count > LARGEST_COUNT:
        raise ValueError(f"--count {count}: 1 to {LARGEST_COUNT} fit")
    if request.seed + count > 2**64:
        raise ValueError(f"--seed {request.seed}: 0 to 2**64 - 1 fit, for the last of {count} images too")
    return [request.model_copy(update={"seed": request.seed + number}) for number in range(count)]


def is_default(ctx: typer.Context, name: str) -> bool:
    """Whether the user left an option away."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"


def config_of(request: "Request") -> "GenerationConfig":
    """How a request asks for its image to be drawn; ValueError names the option that is out of range."""
    from pictish.pipelines.recipe import CONFIG
    from pictish.pipelines.settings import GenerationConfig

    try:
        return GenerationConfig(**{name: getattr(request, option) for name, option in CONFIG.items()})
    except ValueError as error:
        name, colon, rest = str(error).partition(":")
        raise ValueError(f"--{CONFIG[name].replace('_', '-')}{colon}{rest}") from None


def files_of(ctx: typer.Context) -> "Files":
    """What the options of `ctx` ask to be written, and where."""
    from pictish.pipelines.image_requests import Files

    return Files(**{field.name: ctx.params[field.name] for field in fields(Files)})


def carry_out(
    ctx: typer.Context,
    jobs: "Sequence[tuple[str, Request]]",
    given: "Sequence[Image.Image]",
    origin: "Origin | None",
) -> None:
    """Generate what the options of `ctx` ask for; see `pictish.pipelines.image_requests`."""
    from pictish.pipelines import image_requests

    files = files_of(ctx)
    run = {name: ctx.params[name] for name in ("model", "device", "batch_size")}
    adaptor = _adaptor(ctx, jobs[0][1])
    image_requests.carry_out(jobs, given, origin, config_of(jobs[0][1]), files, adaptor=adaptor, **run)


def _adaptor(ctx: typer.Context, request: "Request") -> Path | None:
    """The folder of the adaptor that a request names; ValueError when there is none."""
    from pictish.pipelines.adaptors import choose_adaptor

    if request.adaptor is None:
        return None
    folders = ctx.params.get("adaptor_folder") or ()
    chosen = choose_adaptor(request.adaptor, ctx.params["model"], folders)
    return None if chosen is None else chosen[1]
