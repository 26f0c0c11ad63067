"""Requests to image files that store how they were made: the work of `generate` and `edit`."""

import base64
import hashlib
import math
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pictish.data.images import load_image, png_bytes
from pictish.data.provenance import Origin, Request, png_with_origin, read_origin
from pictish.data.words import is_mark
from pictish.io.files import write_atomic
from pictish.io.interrupt import in_units, stop_here
from pictish.io.model_folder import fingerprint, locate_model
from pictish.pipelines.adaptors import base_of, language_with
from pictish.pipelines.drawing import Drawn, edit, generate, render
from pictish.pipelines.language import Said
from pictish.pipelines.recipe import pixel_facts, sampling_facts
from pictish.pipelines.reconstruct import Reconstructor
from pictish.pipelines.region import parse_region
from pictish.pipelines.settings import GenerationConfig
from pictish.pipelines.text_to_image import TextToImage, shape_in

LONGEST = 80  # bytes of a file name that a prompt gives


def slug(text: str) -> str:
    """A file name from a prompt: its letters, marks and digits in lower case, words joined by dashes.

    It ends with a digest of the prompt where it is cut, or where more was left out than single spaces,
    dashes, underscores and a comma before a space: prompts that differ in punctuation are different images.
    """
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


def carry_out(
    jobs: Sequence[tuple[str, Request]],
    given: Sequence[Image.Image],
    origin: Origin | None,
    config: GenerationConfig,
    files: "Files",
    *,
    model: str,
    device: str,
    batch_size: int,
    adaptor: Path | None = None,
) -> None:
    """Generate each request, all alike but for words and seed, by `config`, and write it as OUT/name.png.

    `adaptor` is the folder of the inner adaptor that requests name.

    The tokens in `origin` are decoded as they are where they are what is asked for. Without an `origin`,
    images that are there already with the same settings are kept. ValueError for names that are
    taken, for settings and models that do not fit, and where a given image is needed again.
    """
    first = jobs[0][1]
    resumes = origin is None
    finished = files.finished(jobs) if resumes else {}
    files.check([name for name, _ in jobs], finished)
    stored = origin.image() if origin and len(jobs) == 1 and first.same_tokens(origin) else None
    if first.pictures and not given and (stored is None or first.keep):
        raise ValueError("the --like file was made from an input image, which is needed again; give it too")
    drawer, reconstructor = _load(model, device, first, adaptor, speaking=stored is None)
    drawing = reconstructor.settled(config.drawing, generated=True)
    sampled: dict[str, Any] = {}
    if drawer is not None:
        settled = drawer.settled(config, pictures=bool(first.pictures))
        sampled = sampling_facts(settled)
    models = {
        "lm": fingerprint(locate_model(model, "lm")),
        "adaptor_weights": None if adaptor is None else fingerprint(adaptor),
    }
    used = pixel_facts(reconstructor, drawing)
    if origin:
        _check_models(used | models, origin, first)
    kept = {"keep": first.keep and reconstructor.keeps_pixels}
    settled_facts = used | sampled | models | kept
    usual_size = {"size": first.size or reconstructor.usual_size(drawing)}
    for name, request in jobs:
        if name in finished:
            files.check_same(name, finished[name], request.model_dump() | settled_facts | usual_size)
    for name, drawn_before in finished.items():
        files.keep(name, drawn_before)
    todo = [(name, request) for name, request in jobs if name not in finished]
    if drawer is not None and first.command == "generate" and not (first.pictures or files.quiet):
        words = [request.prompt for _, request in todo if request.prompt is not None]
        for line in drawer.far_prompt_hints(words):
            print(line, file=sys.stderr)
    images: dict[str, Image.Image] = {}  # for the grid
    with in_units("batch"):
        for start in range(0, len(todo), batch_size):
            there = start + len(finished)
            rest = " generates the rest" if resumes else " with --overwrite generates all of them"
            stop_here(
                f"interrupted; {there} of {len(jobs)} images are in {files.out}; the same command{rest}"
            )
            part = todo[start : start + batch_size]
            requests = [request for _, request in part]
            if stored is not None:
                sources = given[:1] if first.keep else None
                drawn = render(reconstructor, [stored], [first.seed], config, sources=sources)
            else:
                assert drawer is not None
                drawn = _draw(drawer, requests, given, config)
            for (name, request), one in zip(part, drawn, strict=True):
                blob = base64.b64encode(one.tokens.to_bytes()).decode()
                size = {"size": max(one.image.size)}
                facts = request.model_dump() | settled_facts | size | {"tokens": blob}
                files.store(name, one.image, Origin(**facts))
                if files.grid:
                    images[name] = one.image
    if files.grid:
        images |= {name: load_image(files.out / f"{name}.png") for name in finished}
        files.store_grid([images[name] for name, _ in jobs])


def _draw(
    drawer: TextToImage,
    requests: Sequence[Request],
    given: Sequence[Image.Image],
    config: GenerationConfig,
) -> list[Drawn]:
    """An image for each request; those of edits are of `given`."""
    first, seeds = requests[0], [request.seed for request in requests]
    if first.command == "edit":
        words = [request.words or "" for request in requests]
        sources, keep = list(given) * len(requests), bool(first.keep)
        region = None if first.region is None else parse_region(first.region)
        return edit(drawer, sources, words, seeds, config, keep_unchanged=keep, region=region)
    prompts: list[list[Said]] = [
        [*given, request.words] if request.words is not None else [*given] for request in requests
    ]
    shape = shape_of(first.aspect)
    shapes = None if shape is None else [shape] * len(prompts)
    return generate(drawer, prompts, seeds, config, shapes=shapes)


def decoder_of(steps: int | None, lowres: bool) -> str:
    """Which of a model's decoders draws."""
    return "preview" if steps == 0 else "decoder-lowres" if lowres else "decoder"


def _load(
    model: str, device: str, request: Request, adaptor: Path | None, *, speaking: bool
) -> tuple[TextToImage | None, Reconstructor]:
    """The whole model, or, where nothing is to be said to it, what draws tokens alone."""
    from pictish.training.runtime import resolve_device

    where = resolve_device(device)
    which: dict[str, Any] = {name: getattr(request, name) for name in ("steps", "lowres", "precision")}
    if not speaking:
        return None, Reconstructor.from_folder(model, where, **which)
    drawer = TextToImage.from_folder(model, where, **which)
    if request.quantize is not None:
        from pictish.lm.quantize import quantize

        quantize(drawer.language.model.language, request.quantize)
    if adaptor is not None:
        base = base_of(drawer.language.model, model)
        drawer.language = language_with(drawer.language.tokenizer, base, adaptor)
    if request.official_quirks:
        from pictish.pipelines.lavit_replay import OfficialTextToImage

        drawer = OfficialTextToImage.of(drawer)
    return drawer, drawer.reconstructor


def shape_of(aspect: str | None) -> tuple[int, int] | None:
    """(height, width) in pixels of an image with this ratio of width to height; None: the usual square."""
    return None if aspect is None else shape_in(*map(int, aspect.split(":")))


def _check_models(models: Mapping[str, Any], origin: Origin, request: Request) -> None:
    """ValueError naming the part in which this model is not the one that drew `origin`."""
    parts = ["tokenizer", "lm", "adaptor_weights"]
    same = decoder_of(request.steps, request.lowres) == decoder_of(origin.steps, origin.lowres)
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
    """What a call writes, and where."""

    out: Path
    grid: Path | None
    save_tokens: bool
    overwrite: bool
    quiet: bool
    count: int  # images of each prompt

    def finished(self, jobs: Sequence[tuple[str, Request]]) -> dict[str, Origin]:
        """How the images that are there already were drawn, by name; none where they are overwritten.

        ValueError for one that does not say so, or that was drawn by other settings than the options given.
        """
        if self.overwrite:
            return {}
        found = {}
        for name, request in jobs:
            path = self.out / f"{name}.png"
            if not path.exists():
                continue
            try:
                found[name] = read_origin(path)
            except ValueError:
                raise ValueError(_taken(path)) from None
            unknown = {"keep"} if request.keep else set()  # the decoder may not be able to
            self.check_same(name, found[name], request.model_dump(exclude_none=True, exclude=unknown))
            tokens = self.out / f"{name}.tokens"
            kept = found[name].image().to_bytes()
            if self.save_tokens and tokens.exists() and tokens.read_bytes() != kept:
                raise ValueError(_taken(tokens))
        return found

    def check_same(self, name: str, origin: Origin, facts: Mapping[str, Any]) -> None:
        """ValueError naming the first of these settings that an image was not drawn by; no size fits any."""
        for setting, value in facts.items():
            if value != (was := getattr(origin, setting)) and not (setting == "size" and value is None):
                what = f"{setting.replace('_', ' ')} {was}, and {value} is asked for"
                if setting == "pictures":  # digests, which tell nobody anything
                    what = "another input image"
                raise ValueError(
                    f"{self.out / name}.png was generated with {what}; "
                    "give --overwrite to replace it, or another --out"
                )

    def keep(self, name: str, origin: Origin) -> None:
        """Keep an image that is there already, with its tokens if they are wanted; say so."""
        if self.save_tokens:
            write_atomic(self.out / f"{name}.tokens", origin.image().to_bytes())
        if not self.quiet:
            print(f"{self.out / name}.png  exists already")

    def check(self, names: Sequence[str], finished: Collection[str] = ()) -> None:
        """Refuse, with ValueError, names that come twice, and files that are there unless `overwrite`.

        Those of `finished` images may be there.
        """
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ValueError(f"two images would be written to {twice[0]}.png; generate them in separate runs")
        suffixes = (".png", ".tokens") if self.save_tokens else (".png",)
        wanted = [name for name in names if name not in finished]
        paths = [self.out / f"{name}{suffix}" for name in wanted for suffix in suffixes]
        if self.grid:
            if self.grid.suffix.lower() != ".png" or self.grid in paths:
                raise ValueError(f"--grid {self.grid}: expected a .png name that no generated image has")
            paths.append(self.grid)
        there = [path for path in paths if path.exists()]
        if there and not self.overwrite:
            raise ValueError(_taken(there[0]))

    def store(self, name: str, picture: Image.Image, origin: Origin) -> None:
        """Write an image, and its tokens if they are wanted, each as a whole; say so."""
        write_atomic(self.out / f"{name}.png", png_with_origin(picture, origin))
        tokens = origin.image()
        if self.save_tokens:
            write_atomic(self.out / f"{name}.tokens", tokens.to_bytes())
        if not self.quiet:
            print(f"{self.out / name}.png  {len(tokens)} tokens  seed {origin.seed}")

    def store_grid(self, pictures: Sequence[Image.Image]) -> None:
        """Write the sheet: a row for each prompt of several images, else as square as it gets."""
        assert self.grid is not None
        columns = self.count if 1 < self.count < len(pictures) else math.ceil(math.sqrt(len(pictures)))
        write_atomic(self.grid, png_bytes(even_grid(pictures, columns)))
        if not self.quiet:
            print(f"{self.grid}  {len(pictures)} images")


def _taken(path: Path) -> str:
    return f"{path} already exists; give --overwrite to replace it, or another --out"


def even_grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """All images on white in rows of `columns`, each in the middle of a cell that the largest fits."""
    width, height = max(one.width for one in pictures), max(one.height for one in pictures)
    gap = max(1, max(width, height) // 32)
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + gap)), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = gap + column * (width + gap), gap + row * (height + gap)
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
    return sheet
