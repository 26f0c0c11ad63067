"""What methods of `Pipeline` share: their keyword arguments, for type checkers, and how those are read."""

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np
from PIL import Image

from pictish.data.images import Picture, load_image
from pictish.pipelines.language import Said
from pictish.pipelines.progress import Callback, Cancel, Run
from pictish.pipelines.settings import GenerationConfig, Settings

if TYPE_CHECKING:
    import torch

    from pictish.lm.sampling import Sampling


Seed: TypeAlias = int | Sequence[int] | None  # of the first image, or one for each


class RunOptions(TypedDict, total=False):
    """Keyword arguments of every method."""

    seed: Seed
    generator: "torch.Generator | None"
    batch_size: int
    callback: Callback | None
    cancel: Cancel | None


class DrawOptions(RunOptions, Settings, total=False):
    """Those of methods that give images."""

    config: GenerationConfig | None


class GenerateOptions(DrawOptions, total=False):
    """Those of `generate` and `generate_tokens`."""

    images: Sequence[Picture]
    aspect_ratio: tuple[int, int] | None
    adaptor: str | None


class EditOptions(DrawOptions, total=False):
    """Those of `edit`."""

    keep_unchanged: bool
    region: tuple[int, int, int, int] | None


class DescribeOptions(RunOptions, total=False):
    """Those of `describe`."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    features: bool | None
    lemmas: bool
    adaptor: str | Sequence[str | None] | None


class HowMany(TypedDict):
    """Arguments of `tokenize` of which at most one decides how many tokens there are."""

    budget: int | None
    threshold: float | None
    quality: float | None


class TokenizeOptions(RunOptions, total=False):
    """Those of `tokenize`."""

    budget: int | None
    threshold: float | None
    quality: float | None
    max_pixels: int


def sampling_of(
    temperature: float | None, top_k: int | None, top_p: float | None, min_p: float | None
) -> "Sampling | None":
    """How texts are sampled, at temperature 1 by default; None: nothing was asked for."""
    from pictish.lm.sampling import Sampling

    if (temperature, top_k, top_p, min_p) == (None, None, None, None):
        return None
    return Sampling(1.0 if temperature is None else temperature, top_k, top_p, min_p)


def check_max_new_tokens(count: int | None) -> None:
    """ValueError for less than one token."""
    if count is not None and count < 1:
        raise ValueError(f"max_new_tokens: {count} asked for; 1 or more fits")


def prompts_of(
    prompt: str | list[str] | tuple[str, ...] | None,
    images: Sequence[Picture],
    num_images: int | None,
    seed: Seed,
    generator: "torch.Generator | None",
) -> tuple[list[list[Said]], list[int]]:
    """Images and words of the prompt of each image, and its seed."""
    if isinstance(images, str | bytes | Path | Image.Image | np.ndarray):
        raise ValueError("images: one image was given; a list of images fits")
    count = count_of(num_images)
    shown: list[Said] = [load_image(image) for image in images]
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    for one in prompts:
        if one is not None or not shown:
            check_words("prompt", one)
    said = [[*shown, *([] if one is None else [one])] for one in prompts for _ in range(count)]
    if generator is not None or isinstance(seed, Sequence):
        return said, seeds_of(len(said), seed, generator)
    return said, [one for _ in prompts for one in seeds_of(count, seed, None)]


def count_of(num_images: int | None) -> int:
    """How many images of a prompt are asked for."""
    count = 1 if num_images is None else num_images
    if count < 1:
        raise ValueError(f"num_images: {num_images} asked for; 1 or more fits")
    return count


def shape_of(aspect_ratio: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) in pixels of images of this (width, height) ratio."""
    from pictish.pipelines.text_to_image import shape_in

    if aspect_ratio is not None and min(aspect_ratio) < 1:
        raise ValueError(f"aspect_ratio: {aspect_ratio} asked for; (width, height) of 1 or more fits")
    return shape_in(*aspect_ratio or (1, 1))


def check_words(name: str, words: object) -> None:
    """ValueError unless there are some."""
    if not isinstance(words, str) or not words.strip():
        raise ValueError(f"{name}: empty, or not a str; a few words fit")


def tokens_asked_for(
    budget: int | None,
    threshold: float | None,
    quality: float | None,
    seed: Seed,
    generator: "torch.Generator | None",
    cells: int,
) -> HowMany:
    """What decides how many tokens there are; ValueError for two settings, and for one out of range."""
    asked: dict[str, Any] = {"budget": budget, "threshold": threshold, "quality": quality}
    asked |= {"seed": seed} if seed is not None or generator is None else {"generator": generator}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} were given; they exclude each other")
    if budget is not None and not 1 <= budget <= cells:
        raise ValueError(f"budget: {budget} asked for; an image of this model has 1 to {cells} tokens")
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"threshold: {threshold} asked for; a score lies between 0 and 1")
    return {"budget": budget, "threshold": threshold, "quality": quality}


def batches(count: int, batch_size: int, run: Run) -> Iterator[slice]:
    """The places of each batch, before which a call may be cancelled."""
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} asked for; 1 or more fits")
    for start in range(0, count, batch_size):
        run.check()
        yield slice(start, min(start + batch_size, count))


def seeds_of(count: int, seed: Seed, generator: "torch.Generator | None", step: int = 1) -> list[int]:
    """A seed an image: those given, or `seed`, 0 by default, counted up by `step`, or from the generator."""
    import torch

    if generator is not None:
        if seed is not None:
            raise ValueError("seed and generator were given; they exclude each other")
        return [int(n) for n in torch.randint(2**62, (count,), generator=generator, device=generator.device)]
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        if len(seed) != count:
            raise ValueError(f"seed: {len(seed)} given for {count} images; one for each would fit")
        return [_seed(one) for one in seed]
    first = _seed(0 if seed is None else seed, step * max(0, count - 1))
    return [first + step * number for number in range(count)]


def _seed(seed: object, more: int = 0) -> int:
    """A seed after which `more` others fit."""
    try:
        found = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"seed: {type(seed).__name__} given; a whole number would fit") from None
    if not 0 <= found < 2**64 - more:
        raise ValueError(f"seed: {found} asked for; 0 to 2**64 - 1 fit, of the last image too")
    return found


def questions_of(
    image: Any, question: str | Sequence[str | None] | None
) -> tuple[list[Any], list[str | None]]:
    """Images and the question about each: one question about all, several about one, or one for each."""
    images = listed_of(image)
    if isinstance(question, str | None):
        return images, [question] * len(images)
    if not isinstance(question, list | tuple) or not all(isinstance(one, str | None) for one in question):
        raise TypeError(f"question: {type(question).__name__} given; a str, or a list of them, would fit")
    if not isinstance(image, list | tuple):
        images = images * len(question)
    if len(images) != len(question):
        raise ValueError(f"question: {len(question)} given for {len(images)} images; one for each would fit")
    return images, list(question)


def listed_of(images: Any) -> list[Any]:
    """A list of one image, or of those of a list."""
    return list(images) if isinstance(images, list | tuple) else [images]


def named(place: int, listed: Sequence[Picture], max_pixels: int) -> Image.Image:
    """One of several images; an error says which."""
    try:
        return load_image(listed[place], max_pixels)
    except ValueError as error:
        one = listed[place]
        name = str(one) if isinstance(one, str | Path) else f"image {place}"
        raise ValueError(f"{name}: {error}") from error
