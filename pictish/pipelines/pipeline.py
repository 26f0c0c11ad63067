"""The public API: `Pipeline` generates, edits, describes, tokenizes and detokenizes images.

It joins the parts of a model folder, each loaded on first use, and calls the pipelines beside it.
docs/python.md is the reference.
"""

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, cast, overload

import numpy as np
from PIL import Image

from pictish.data.images import MAX_PIXELS, Picture, load_image
from pictish.data.tokens import TokenizedImage
from pictish.io.model_folder import locate_model
from pictish.pipelines.language import Precision, Said
from pictish.pipelines.progress import Callback, Cancel, Run
from pictish.pipelines.settings import GenerationConfig, Settings, with_settings
from pictish.training.isolation import loading

if TYPE_CHECKING:
    import torch

    from pictish.lm.model import UnifiedModel
    from pictish.pipelines.language import Language
    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.tokenizer.dynamic import Tokenizer

Dtype = Literal["float32", "bfloat16"]
AnyPicture = TypeVar("AnyPicture", bound=Picture)


class RunOptions(TypedDict, total=False):
    """Keyword arguments that methods share, for type checkers."""

    seed: int | None
    generator: "torch.Generator | None"
    batch_size: int
    callback: Callback | None
    cancel: Cancel | None


class DrawOptions(RunOptions, Settings, total=False):
    """Those of methods that draw images."""

    config: GenerationConfig | None


class GenerateOptions(DrawOptions, total=False):
    """Those of `generate` and `generate_tokens`."""

    images: Sequence[Picture]
    aspect_ratio: tuple[int, int] | None


class EditOptions(DrawOptions, total=False):
    """Those of `edit`."""

    keep_unchanged: bool


class DescribeOptions(RunOptions, total=False):
    """Those of `describe`."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    features: bool | None
    lemmas: bool


class TokenizeOptions(RunOptions, total=False):
    """Those of `tokenize`."""

    budget: int | None
    threshold: float | None
    quality: float | None
    max_pixels: int


class Pipeline:
    """A model folder at work: `Pipeline.from_pretrained("starter").generate("a red apple", seed=0)`.

    Parts are loaded on first use, once, also from several threads. Images are given as a path, the bytes of a
    file, a PIL image of any mode or a uint8 array (height, width[, 3 or 4]); transparent pixels are on white.
    Images returned are RGB. A list in gives a list out.

    Shared arguments: `seed` (default 0) makes a call reproducible on the same machine; a `torch.Generator` as
    `generator` draws the seeds of the images instead, so that calls in a row differ. `batch_size` images are
    computed at a time. `callback` gets a `Progress` after each step, and `cancel` (a `threading.Event`, or a
    function that returns True) is asked between steps: the call then raises `Cancelled`.

    ValueError, in one line, is raised for arguments out of range, images that cannot be decoded and model
    folders that are damaged or lack a part; OSError for files that cannot be read.
    """

    def __init__(self, model: str | Path, device: "torch.device", precision: Precision) -> None:
        self.model, self.device, self.precision = model, device, precision
        self._tokenizer: Tokenizer | None = None
        self._language: Language | None = None
        self._reconstructors: dict[bool, Reconstructor] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "starter",
        *,
        device: "str | torch.device" = "auto",
        dtype: "Dtype | torch.dtype" = "float32",
    ) -> "Pipeline":
        """A model by name (`"starter"` ships with the package) or by the path of its folder.

        `device` is "auto" (CUDA where there is a GPU), "cpu", "cuda" or "cuda:N". `dtype`, float32 or
        bfloat16, is that of the language model, the denoiser and, on a GPU, the upscaler. Nothing is loaded
        yet. ValueError for a folder without a tokenizer, a device that is not there and other types.
        """
        from pictish.training.world import resolve_device

        precision = str(dtype).removeprefix("torch.")
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: {dtype} asked for; float32 or bfloat16 fits")
        locate_model(model, "tokenizer")
        return cls(model, resolve_device(str(device)), cast(Precision, precision))

    @property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer, loaded on first use."""
        return self._tokenizer or self._load_tokenizer()

    @property
    def language_model(self) -> "UnifiedModel":
        """The language model with its text tokenizer and projector, loaded on first use."""
        return self.language.model

    @property
    def language(self) -> "Language":
        """Tokenizer and language model, joined; loaded on first use."""
        return self._language or self._load_language()

    def reconstructor(self, *, preview: bool = False) -> "Reconstructor":
        """Tokenizer and diffusion decoder, or feed-forward `preview`, joined; loaded on first use."""
        return self._reconstructors.get(preview) or self._load_reconstructor(preview)

    @loading
    def _load_tokenizer(self) -> "Tokenizer":
        from pictish.tokenizer.dynamic import Tokenizer

        if self._tokenizer is None:  # else another thread has loaded it meanwhile
            self._tokenizer = Tokenizer.from_folder(self.model, self.device)
        return self._tokenizer

    @loading
    def _load_language(self) -> "Language":
        import torch

        from pictish.lm.model import UnifiedModel
        from pictish.pipelines.language import Language

        if self._language is None:
            model = UnifiedModel.from_folder(self.model, self.device, getattr(torch, self.precision))
            self._language = Language(self.tokenizer, model)
        return self._language

    @loading
    def _load_reconstructor(self, preview: bool) -> "Reconstructor":
        from pictish.pipelines.reconstruct import Reconstructor

        if preview not in self._reconstructors:
            steps = 0 if preview else None
            self._reconstructors[preview] = Reconstructor.from_folder(
                self.model, self.device, self.tokenizer, steps=steps, precision=self.precision
            )
        return self._reconstructors[preview]

    @overload
    def generate(
        self, prompt: str | None = None, *, num_images: None = None, **options: Unpack[GenerateOptions]
    ) -> Image.Image: ...

    @overload
    def generate(
        self, prompt: str | None = None, *, num_images: int, **options: Unpack[GenerateOptions]
    ) -> list[Image.Image]: ...

    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        num_images: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Image.Image]: ...

    def generate(
        self,
        prompt: str | list[str] | tuple[str, ...] | None = None,
        *,
        num_images: int | None = None,
        images: Sequence[Picture] = (),
        aspect_ratio: tuple[int, int] | None = None,
        seed: int | None = None,
        generator: "torch.Generator | None" = None,
        batch_size: int = 8,
        config: GenerationConfig | None = None,
        callback: Callback | None = None,
        cancel: Cancel | None = None,
        **settings: Unpack[Settings],
    ) -> Image.Image | list[Image.Image]:
        """Generate what a prompt says: one image, or a list for a list of prompts or with `num_images`.

        `images` go before the words of each prompt, which may then be None. Image n of a prompt has the seed
        `seed` + n, as in `pictish generate`, which gives the same pixels; prompts come one after the other.
        `aspect_ratio` is (width, height), such as (3, 2); square by default. `config` and the fields of
        `GenerationConfig` as keywords, which take precedence, leave what is None to the model.
        """
        config = with_settings(config, settings)
        said, seeds = self._prompts(prompt, images, num_images, seed, generator)
        run = Run(len(said), callback, cancel)
        self._decoder(config).check(config.drawing)
        drawn: list[Image.Image] = []
        for batch in _batches(len(said), batch_size, run):
            tokens = self._codes(said[batch], seeds[batch], config, aspect_ratio, run, batch.start)
            drawn += self._pixels(tokens, seeds[batch], config, run, batch.start)
        return drawn[0] if num_images is None and not isinstance(prompt, list | tuple) else drawn

    @overload
    def generate_tokens(
        self, prompt: str | None = None, *, num_images: None = None, **options: Unpack[GenerateOptions]
    ) -> TokenizedImage: ...

    @overload
    def generate_tokens(
        self, prompt: str | None = None, *, num_images: int, **options: Unpack[GenerateOptions]
    ) -> list[TokenizedImage]: ...

    @overload
    def generate_tokens(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        num_images: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[TokenizedImage]: ...

    def generate_tokens(
        self,
        prompt: str | list[str] | tuple[str, ...] | None = None,
        *,
        num_images: int | None = None,
        images: Sequence[Picture] = (),
        aspect_ratio: tuple[int, int] | None = None,
        seed: int | None = None,
        generator: "torch.Generator | None" = None,
        batch_size: int = 8,
        config: GenerationConfig | None = None,
        callback: Callback | None = None,
        cancel: Cancel | None = None,
        **settings: Unpack[Settings],
    ) -> TokenizedImage | list[TokenizedImage]:
        """The tokens of the images that `generate` gives for the same arguments; no decoder is loaded."""
        config = with_settings(config, settings)
        said, seeds = self._prompts(prompt, images, num_images, seed, generator)
        run = Run(len(said), callback, cancel)
        drawn: list[TokenizedImage] = []
        for batch in _batches(len(said), batch_size, run):
            drawn += self._codes(said[batch], seeds[batch], config, aspect_ratio, run, batch.start)
        return drawn[0] if num_images is None and not isinstance(prompt, list | tuple) else drawn

    @overload
    def edit(
        self,
        image: Picture,
        instruction: str,
        *,
        num_images: None = None,
        **options: Unpack[EditOptions],
    ) -> Image.Image: ...

    @overload
    def edit(
        self, image: Picture, instruction: str, *, num_images: int, **options: Unpack[EditOptions]
    ) -> list[Image.Image]: ...

    def edit(
        self,
        image: Picture,
        instruction: str,
        *,
        num_images: int | None = None,
        keep_unchanged: bool = True,
        seed: int | None = None,
        generator: "torch.Generator | None" = None,
        batch_size: int = 8,
        config: GenerationConfig | None = None,
        callback: Callback | None = None,
        cancel: Cancel | None = None,
        **settings: Unpack[Settings],
    ) -> Image.Image | list[Image.Image]:
        """Change an image as the instruction says, in its aspect ratio: one image, or `num_images` in a list.

        With `keep_unchanged` pixels stay where the edit left the tokens unchanged, if the decoder can keep
        them. Seeds and settings are those of `generate`, and `pictish edit` gives the same pixels.
        """
        config = with_settings(config, settings)
        source = load_image(image)
        _check_words("instruction", instruction)
        said, seeds = self._prompts(instruction, [source], num_images, seed, generator)
        run = Run(len(said), callback, cancel)
        self._decoder(config).check(config.drawing)
        drawn: list[Image.Image] = []
        for batch in _batches(len(said), batch_size, run):
            shape = (source.width, source.height)
            tokens = self._codes(said[batch], seeds[batch], config, shape, run, batch.start, exactly=True)
            kept = source if keep_unchanged else None
            drawn += self._pixels(tokens, seeds[batch], config, run, batch.start, kept)
        return drawn[0] if num_images is None else drawn

    @overload
    def describe(
        self,
        image: list[AnyPicture] | tuple[AnyPicture, ...],
        question: str | None = None,
        **options: Unpack[DescribeOptions],
    ) -> list[str]: ...

    @overload
    def describe(
        self, image: Picture, question: str | None = None, **options: Unpack[DescribeOptions]
    ) -> str: ...

    def describe(
        self,
        image: Picture | list[AnyPicture] | tuple[AnyPicture, ...],
        question: str | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        features: bool | None = None,
        lemmas: bool = False,
        seed: int | None = None,
        generator: "torch.Generator | None" = None,
        batch_size: int = 8,
        callback: Callback | None = None,
        cancel: Cancel | None = None,
    ) -> str | list[str]:
        """A caption of an image, or the answer to a question about it; for a list of images a list of texts.

        Without sampling settings the model's own way is taken, greedy or beam search; with one of
        `temperature`, `top_k`, `top_p` and `min_p` the text is sampled, at temperature 1 by default.
        `features` selects whether images enter as continuous features or as codes, `lemmas` reduces nouns and
        verbs of answers to their base form (needs spaCy). At most `max_new_tokens` text tokens are written.
        """
        from pictish.lm.sampling import Sampling
        from pictish.pipelines.describe import Describe

        pictures = [load_image(one) for one in _listed(image)]
        sampling = None
        if (temperature, top_k, top_p, min_p) != (None, None, None, None):
            sampling = Sampling(1.0 if temperature is None else temperature, top_k, top_p, min_p)
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: {max_new_tokens} asked for; 1 or more fits")
        seeds = _seeds(len(pictures), seed, generator)
        run = Run(len(pictures), callback, cancel)
        written: list[str] = []
        for batch in _batches(len(pictures), batch_size, run):
            written += Describe(self.language).batch(
                pictures[batch],
                [question] * len(pictures[batch]),
                continuous=features,
                most=max_new_tokens,
                lemmas=lemmas,
                sampling=sampling,
                generators=None if sampling is None else _generators(seeds[batch]),
                progress=run.steps("language_model", batch.start),
            )
        return written if isinstance(image, list | tuple) else written[0]

    @overload
    def tokenize(
        self, images: list[AnyPicture] | tuple[AnyPicture, ...], **options: Unpack[TokenizeOptions]
    ) -> list[TokenizedImage]: ...

    @overload
    def tokenize(self, images: Picture, **options: Unpack[TokenizeOptions]) -> TokenizedImage: ...

    def tokenize(
        self,
        images: Picture | list[AnyPicture] | tuple[AnyPicture, ...],
        *,
        budget: int | None = None,
        threshold: float | None = None,
        quality: float | None = None,
        seed: int | None = None,
        generator: "torch.Generator | None" = None,
        batch_size: int = 32,
        max_pixels: int = MAX_PIXELS,
        callback: Callback | None = None,
        cancel: Cancel | None = None,
    ) -> TokenizedImage | list[TokenizedImage]:
        """Tokens of images, the same as `pictish tokenize` writes; the same image gives the same tokens.

        How many, by at most one of: exactly `budget`; patches scored above `threshold` (0 to 1, by default
        0.5); as few as are expected to reach a PSNR of `quality` dB; or sampled by score, which `seed` (image
        n has `seed` + n) or `generator` asks for. Images of more than `max_pixels` pixels are refused.
        """
        listed = _listed(images)
        sampled = seed is not None or generator is not None
        asked = {"budget": budget, "threshold": threshold, "quality": quality}
        given = [name for name, value in asked.items() if value is not None]
        if len(given) + sampled > 1:
            given += ["generator" if seed is None else "seed"] if sampled else []
            raise ValueError(f"{' and '.join(given)} were given; they exclude each other")
        cells = self.tokenizer.cells
        if budget is not None and not 1 <= budget <= cells:
            raise ValueError(f"budget: {budget} asked for; an image of this model has 1 to {cells} tokens")
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold: {threshold} asked for; a score lies between 0 and 1")
        seeds = _seeds(len(listed), seed, generator) if sampled else []
        run = Run(len(listed), callback, cancel)
        found: list[TokenizedImage] = []
        for batch in _batches(len(listed), batch_size, run):
            pictures = [_named(place, listed, max_pixels) for place in range(batch.start, batch.stop)]
            generators = _generators(seeds[batch]) if sampled else None
            found += self.tokenizer.tokenize(
                pictures, budget=budget, threshold=threshold, quality=quality, generators=generators
            )
            run.steps("tokenizer", batch.start)(1, 1)
        return found if isinstance(images, list | tuple) else found[0]

    @overload
    def detokenize(self, tokens: TokenizedImage, **options: Unpack[DrawOptions]) -> Image.Image: ...

    @overload
    def detokenize(
        self, tokens: Sequence[TokenizedImage], **options: Unpack[DrawOptions]
    ) -> list[Image.Image]: ...

    def detokenize(
        self,
        tokens: TokenizedImage | Sequence[TokenizedImage],
        *,
        seed: int | None = None,
        generator: "torch.Generator | None" = None,
        batch_size: int = 32,
        config: GenerationConfig | None = None,
        callback: Callback | None = None,
        cancel: Cancel | None = None,
        **settings: Unpack[Settings],
    ) -> Image.Image | list[Image.Image]:
        """Decode tokens to images in the aspect ratio of the originals, as `pictish detokenize` does.

        Every image starts from noise of the same `seed`, so none depends on its place in the list. Of the
        settings those of the decoder count: `num_inference_steps` (0: preview), `decoder_guidance_scale`,
        `scheduler`, `upscale` and `size`. ValueError for tokens of another tokenizer.
        """
        config = with_settings(config, settings)
        listed = [tokens] if isinstance(tokens, TokenizedImage) else list(tokens)
        for one in listed:
            self.tokenizer.check(one)
        seeds = _seeds(len(listed), seed, generator, step=0)
        run = Run(len(listed), callback, cancel)
        drawn: list[Image.Image] = []
        for batch in _batches(len(listed), batch_size, run):
            drawn += self._decoder(config)(
                listed[batch],
                config.size,
                generators=_generators(seeds[batch]),
                drawing=config.drawing,
                progress=run.steps("decoder", batch.start),
            )
        return drawn[0] if isinstance(tokens, TokenizedImage) else drawn

    def _prompts(
        self,
        prompt: str | list[str] | tuple[str, ...] | None,
        images: Sequence[Picture],
        num_images: int | None,
        seed: int | None,
        generator: "torch.Generator | None",
    ) -> tuple[list[list[Said]], list[int]]:
        """What is said for each image, and its seed."""
        if isinstance(images, str | bytes | Path | Image.Image | np.ndarray):
            raise ValueError("images: one image was given; a list of images fits")
        count = 1 if num_images is None else num_images
        if count < 1:
            raise ValueError(f"num_images: {num_images} asked for; 1 or more fits")
        shown: list[Said] = [load_image(image) for image in images]
        prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        for one in prompts:
            if one is not None or not shown:
                _check_words("prompt", one)
        said = [[*shown, *([] if one is None else [one])] for one in prompts for _ in range(count)]
        if generator is not None:
            return said, _seeds(len(said), seed, generator)
        return said, [one for _ in prompts for one in _seeds(count, seed, None)]

    def _codes(
        self,
        said: Sequence[Sequence[Said]],
        seeds: Sequence[int],
        config: GenerationConfig,
        aspect_ratio: tuple[int, int] | None,
        run: Run,
        done: int,
        *,
        exactly: bool = False,
    ) -> list[TokenizedImage]:
        """Tokens of a batch; with `exactly` the aspect ratio is the size in pixels."""
        from pictish.pipelines.text_to_image import TextToImage, shape_in

        if aspect_ratio is not None and min(aspect_ratio) < 1:
            raise ValueError(f"aspect_ratio: {aspect_ratio} asked for; (width, height) of 1 or more fits")
        width, height = aspect_ratio or (1, 1)
        shape = (height, width) if exactly else shape_in(width, height)
        drawer = TextToImage(self.language, None)  # type: ignore[arg-type]  # tokens need no decoder
        return drawer.tokens(
            said,
            _generators(seeds),
            config,
            shapes=[shape] * len(said),
            progress=run.steps("language_model", done),
        )

    def _decoder(self, config: GenerationConfig) -> "Reconstructor":
        return self.reconstructor(preview=config.num_inference_steps == 0)

    def _pixels(
        self,
        tokens: Sequence[TokenizedImage],
        seeds: Sequence[int],
        config: GenerationConfig,
        run: Run,
        done: int,
        kept: Image.Image | None = None,
    ) -> list[Image.Image]:
        """Images of a batch of new tokens, whose noise starts from the seeds afresh."""
        reconstructor = self._decoder(config)
        return reconstructor(
            tokens,
            config.size,
            generators=_generators(seeds),
            drawing=reconstructor.settled(config.drawing),
            sources=None if kept is None else reconstructor.kept(kept, tokens),
            progress=run.steps("decoder", done),
        )


def _check_words(name: str, words: object) -> None:
    """ValueError unless there are some."""
    if not isinstance(words, str) or not words.strip():
        raise ValueError(f"{name}: empty, or not a str; a few words fit")


def _batches(count: int, batch_size: int, run: Run) -> Iterator[slice]:
    """The places of each batch, before which a call may be cancelled."""
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} asked for; 1 or more fits")
    for start in range(0, count, batch_size):
        run.check()
        yield slice(start, min(start + batch_size, count))


def _seeds(count: int, seed: int | None, generator: "torch.Generator | None", step: int = 1) -> list[int]:
    """A seed an image: `seed`, 0 by default, counted up by `step`, or drawn from the generator."""
    import torch

    if generator is not None:
        if seed is not None:
            raise ValueError("seed and generator were given; they exclude each other")
        return [int(n) for n in torch.randint(2**62, (count,), generator=generator, device=generator.device)]
    first = 0 if seed is None else operator.index(seed)
    if not 0 <= first <= 2**64 - 1 - step * max(0, count - 1):
        raise ValueError(f"seed: {seed} asked for; 0 to 2**64 - 1 fit, of the last image too")
    return [first + step * number for number in range(count)]


def _generators(seeds: Sequence[int]) -> "list[torch.Generator]":
    import torch

    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _listed(images: Any) -> list[Any]:
    return list(images) if isinstance(images, list | tuple) else [images]


def _named(place: int, listed: Sequence[Picture], max_pixels: int) -> Image.Image:
    """One of several images; an error says which."""
    try:
        return load_image(listed[place], max_pixels)
    except ValueError as error:
        one = listed[place]
        name = str(one) if isinstance(one, str | Path) else f"image {place}"
        raise ValueError(f"{name}: {error}") from error
