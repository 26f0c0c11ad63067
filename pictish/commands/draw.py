"""What `pictish generate` and `pictish edit` share: options, file names, generation, and output files.

Their options are parameters of the two functions, for typer; here they are read by name from typer's context,
so that an option that both have is handled once.
"""

import base64
import hashlib
import math
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from pictish.commands.options import Precision

if TYPE_CHECKING:
    from PIL import Image

    from pictish.data.provenance import Origin, Request
    from pictish.pipelines.drawing import Drawn
    from pictish.pipelines.language import Said
    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.pipelines.settings import Drawing, GenerationConfig
    from pictish.pipelines.text_to_image import TextToImage

CONFIG = {  # setting of `GenerationConfig`: the same in a `Request`, and the option
    "guidance_scale": "guidance",
    "image_guidance_scale": "image_guidance",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "min_codes": "min_tokens",
    "max_codes": "max_tokens",
    "num_inference_steps": "steps",
    "decoder_guidance_scale": "pixel_guidance",
    "scheduler": "scheduler",
    "upscale": "upscale",
    "size": "size",
}
SAMPLED = ("guidance_scale", "image_guidance_scale", "temperature", "top_k", "top_p", "min_p")
LARGEST_COUNT = 100_000  # pictures of a prompt
LONGEST = 80  # bytes of a file name that a prompt gives


def given_picture(path: Path) -> "Image.Image":
    """The RGB picture a user named; ValueError says which file is none, OSError which cannot be read."""
    from pictish.data.images import load_image
    from pictish.io.files import printable

    try:
        return load_image(path)
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}") from error


def slug(text: str) -> str:
    """A file name from a prompt: its letters, marks and digits in lower case, words joined by dashes.

    It ends with a digest of the prompt where it is cut, or where more was left out than single spaces,
    dashes, underscores and a comma before a space: prompts that differ in punctuation are different pictures.
    """
    from pictish.data.words import is_mark

    lower = unicodedata.normalize("NFC", text).lower()
    words = "".join(c if c.isalnum() or is_mark(c) else " " for c in lower).split()
    whole = "-".join(word for word in words if any(map(str.isalnum, word)))
    short = whole.encode()[:LONGEST].decode(errors="ignore").strip("-")  # file systems count bytes
    if short == whole and re.sub(", |[ _-]", "-", lower) == whole:
        return whole or "picture"
    return f"{short or 'picture'}-{_digest(text)}"


def names_of(texts: Sequence[str]) -> list[str]:
    """A file name for each prompt of one command; different prompts have different names."""
    sharing: defaultdict[str, set[str]] = defaultdict(set)
    for text in texts:
        sharing[slug(text)].add(text)
    return [
        f"{name}-{_digest(text)}" if len(sharing[name]) > 1 else name
        for name, text in zip(map(slug, texts), texts, strict=True)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def origin_of(file: Path | None, command: Literal["generate", "edit"]) -> "Origin | None":
    """How the picture of `--like` was drawn; ValueError when it was by the other command."""
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
    """The first picture that the options of `ctx` ask for; what they leave out is as in `origin`.

    ValueError for a setting out of range, and for other given pictures than those of `origin`.
    """
    from pictish.configs import parse
    from pictish.data.provenance import Request, digest_of
    from pictish.data.words import check_text

    options: dict[str, Any] = {
        name: value.value if isinstance(value, Precision) else value
        for name, value in ctx.params.items()
        if name in Request.model_fields
    }
    pictures = tuple(map(digest_of, given))
    if origin is not None:
        left = {name for name in options if _is_default(ctx, name)}
        options |= {name: getattr(origin, name) for name in left}
        if _decoder_of(options["steps"], options["lowres"]) != _decoder_of(origin.steps, origin.lowres):
            # the other decoder has settings of its own
            options |= dict.fromkeys(left & {"pixel_guidance", "scheduler"})
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
        raise ValueError(f"--seed {request.seed}: 0 to 2**64 - 1 fit, for the last of {count} pictures too")
    return [request.model_copy(update={"seed": request.seed + number}) for number in range(count)]


def carry_out(
    ctx: typer.Context,
    jobs: "Sequence[tuple[str, Request]]",
    given: "Sequence[Image.Image]",
    origin: "Origin | None",
) -> None:
    """Draw each request, all alike but for words and seed, and write it as OUT/name.png.

    The tokens in `origin` are drawn as they are where they are what is asked for. ValueError for names that
    are taken, for settings and models that do not fit, and where a given picture is needed again.
    """
    from pictish.data.provenance import Origin
    from pictish.io.interrupt import in_units, stop_here
    from pictish.pipelines.drawing import render

    first = jobs[0][1]
    config = config_of(first)
    files = Files(**{field.name: ctx.params[field.name] for field in fields(Files)})
    files.check([name for name, _ in jobs])
    stored = origin.image() if origin and len(jobs) == 1 and first.same_tokens(origin) else None
    if first.pictures and not given and (stored is None or first.keep):
        raise ValueError("the --like file was made from an input image, which is needed again; give it too")
    drawer, reconstructor = _load(ctx, first, speaking=stored is None)
    drawing = reconstructor.settled(config.drawing, generated=True)
    sampled: dict[str, Any] = {}
    if drawer is not None:
        settled = drawer.settled(config, pictures=bool(first.pictures))
        sampled = {CONFIG[name]: getattr(settled, name) for name in SAMPLED}
    models = _models(ctx.params["model"], reconstructor, drawing)
    if origin:
        _check_models(models, origin, first)
    if drawer is not None and first.command == "generate" and not (first.pictures or files.quiet):
        words = [request.prompt for _, request in jobs if request.prompt is not None]
        for line in drawer.far_prompt_hints(words):
            print(line, file=sys.stderr)
    pictures = []
    with in_units("batch"):
        for start in range(0, len(jobs), ctx.params["batch_size"]):
            stop_here(
                f"interrupted; {start} of {len(jobs)} images are in {files.out}; "
                "the same command with --overwrite generates all of them"
            )
            part = jobs[start : start + ctx.params["batch_size"]]
            requests = [request for _, request in part]
            if stored is not None:
                sources = given[:1] if first.keep else None
                drawn = render(reconstructor, [stored], [first.seed], config, sources=sources)
            else:
                assert drawer is not None
                drawn = _draw(drawer, requests, given, config)
            used = {
                "steps": drawing.steps,
                "pixel_guidance": drawing.guidance,
                "scheduler": drawing.scheduler,
                "upscale": drawing.upscale,
            }
            for (name, request), one in zip(part, drawn, strict=True):
                blob = base64.b64encode(one.tokens.to_bytes()).decode()
                kept = {"keep": None if first.keep is None else one.kept}
                size = {"size": max(one.image.size)}
                facts = request.model_dump() | used | kept | sampled | size | models | {"tokens": blob}
                files.store(name, one.image, Origin(**facts))
            pictures += [one.image for one in drawn] if files.grid else []
    if files.grid:
        files.store_grid(pictures, ctx.params["count"])


def _draw(
    drawer: "TextToImage",
    requests: "Sequence[Request]",
    given: "Sequence[Image.Image]",
    config: "GenerationConfig",
) -> "list[Drawn]":
    """An image for each request; those of edits are of `given`."""
    from pictish.pipelines.drawing import edit, generate
    from pictish.pipelines.region import parse_region

    first, seeds = requests[0], [request.seed for request in requests]
    if first.command == "edit":
        words = [request.words or "" for request in requests]
        sources = list(given) * len(requests)
        return edit(
            drawer,
            sources,
            words,
            seeds,
            config,
            keep_unchanged=bool(first.keep),
            region=None if first.region is None else parse_region(first.region),
            official_quirks=first.official_quirks,
        )
    prompts: list[list[Said]] = [
        [*given, request.words] if request.words is not None else [*given] for request in requests
    ]
    shape = _shape_of(first.aspect)
    shapes = None if shape is None else [shape] * len(prompts)
    return generate(drawer, prompts, seeds, config, shapes=shapes, official_quirks=first.official_quirks)


def _decoder_of(steps: int | None, lowres: bool) -> str:
    """Which of a model's decoders draws."""
    return "preview" if steps == 0 else "decoder-lowres" if lowres else "decoder"


def _is_default(ctx: typer.Context, name: str) -> bool:
    """Whether the user left an option away."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"


def _load(
    ctx: typer.Context, request: "Request", *, speaking: bool
) -> "tuple[TextToImage | None, Reconstructor]":
    """The whole model, or, where nothing is to be said to it, what draws tokens alone."""
    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.pipelines.text_to_image import TextToImage
    from pictish.training.runtime import resolve_device

    model, device = ctx.params["model"], resolve_device(ctx.params["device"])
    which: dict[str, Any] = {name: getattr(request, name) for name in ("steps", "lowres", "precision")}
    if not speaking:
        return None, Reconstructor.from_folder(model, device, **which)
    drawer = TextToImage.from_folder(model, device, **which)
    return drawer, drawer.reconstructor


def config_of(request: "Request") -> "GenerationConfig":
    """How a request asks for its picture to be drawn; ValueError names the option that is out of range."""
    from pictish.pipelines.settings import GenerationConfig

    try:
        return GenerationConfig(**{name: getattr(request, option) for name, option in CONFIG.items()})
    except ValueError as error:
        name, colon, rest = str(error).partition(":")
        raise ValueError(f"--{CONFIG[name].replace('_', '-')}{colon}{rest}") from None


def _shape_of(aspect: str | None) -> tuple[int, int] | None:
    """(height, width) in pixels of a picture with this ratio of width to height; None: the usual square."""
    from pictish.pipelines.text_to_image import shape_in

    return None if aspect is None else shape_in(*map(int, aspect.split(":")))


def _models(model: str, reconstructor: "Reconstructor", drawing: "Drawing") -> dict[str, str | None]:
    """What the origin says of the program and the model."""
    from pictish import __version__
    from pictish.io.model_folder import fingerprint, locate_model

    return {
        "pictish": __version__,
        "tokenizer": reconstructor.tokenizer.fingerprint,
        "lm": fingerprint(locate_model(model, "lm")),
        "decoder": reconstructor.fingerprint,
        "upscaler": reconstructor.upscaler_of(drawing),
    }


def _check_models(models: dict[str, str | None], origin: "Origin", request: "Request") -> None:
    """ValueError naming the part in which this model is not the one that drew `origin`."""
    parts = ["tokenizer", "lm"]
    same = _decoder_of(request.steps, request.lowres) == _decoder_of(origin.steps, origin.lowres)
    if same:  # else the user asked for the other decoder
        parts.append("decoder")
    if models["upscaler"] and origin.upscaler:
        parts.append("upscaler")
    for part in parts:
        theirs = getattr(origin, part)
        if models[part] != theirs:
            raise ValueError(
                f"the --like file was made with {part} {theirs}, but this model has {models[part]}; "
                "set --model to the model that made it"
            )


@dataclass(frozen=True)
class Files:
    """What a call writes; the fields are options."""

    out: Path
    grid: Path | None
    save_tokens: bool
    overwrite: bool
    quiet: bool

    def check(self, names: "Sequence[str]") -> None:
        """Refuse, with ValueError, names that come twice, and files that are there unless `overwrite`."""
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ValueError(f"two images would be written to {twice[0]}.png; generate them in separate runs")
        suffixes = (".png", ".tokens") if self.save_tokens else (".png",)
        paths = [self.out / f"{name}{suffix}" for name in names for suffix in suffixes]
        if self.grid:
            if self.grid.suffix.lower() != ".png" or self.grid in paths:
                raise ValueError(f"--grid {self.grid}: expected a .png name that no generated image has")
            paths.append(self.grid)
        there = [path for path in paths if path.exists()]
        if there and not self.overwrite:
            raise ValueError(f"{there[0]} already exists; give --overwrite to replace it, or another --out")

    def store(self, name: str, picture: "Image.Image", origin: "Origin") -> None:
        """Write a picture, and its tokens if they are wanted, each as a whole; say so."""
        from pictish.data.provenance import png_with_origin
        from pictish.io.files import write_atomic

        write_atomic(self.out / f"{name}.png", png_with_origin(picture, origin))
        tokens = origin.image()
        if self.save_tokens:
            write_atomic(self.out / f"{name}.tokens", tokens.to_bytes())
        if not self.quiet:
            print(f"{self.out / name}.png  {len(tokens)} tokens  seed {origin.seed}")

    def store_grid(self, pictures: "Sequence[Image.Image]", count: int) -> None:
        """Write the sheet: a row for each prompt of several pictures, else as square as it gets."""
        from pictish.data.images import png_bytes
        from pictish.io.files import write_atomic

        assert self.grid is not None
        columns = count if 1 < count < len(pictures) else math.ceil(math.sqrt(len(pictures)))
        write_atomic(self.grid, png_bytes(even_grid(pictures, columns)))
        if not self.quiet:
            print(f"{self.grid}  {len(pictures)} images")


def even_grid(pictures: "Sequence[Image.Image]", columns: int) -> "Image.Image":
    """All pictures on white in rows of `columns`, each in the middle of a cell that the largest fits."""
    from PIL import Image

    width, height = max(one.width for one in pictures), max(one.height for one in pictures)
    gap = max(1, max(width, height) // 32)
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + gap)), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = gap + column * (width + gap), gap + row * (height + gap)
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
    return sheet
