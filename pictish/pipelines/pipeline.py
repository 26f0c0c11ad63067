"""The public API: `Pipeline` generates, edits, describes, tokenizes and detokenizes images.

It joins the parts of a model folder and calls the pipelines beside it. docs/python.md is the reference.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from PIL import Image

from pictish.data.images import MAX_PIXELS, Picture, load_image
from pictish.data.provenance import digest_of
from pictish.data.tokens import TokenizedImage
from pictish.pipelines import drawing
from pictish.pipelines.arguments import (
    DescribeOptions,
    DrawOptions,
    EditOptions,
    GenerateOptions,
    Seed,
    TokenizeOptions,
    batches,
    check_max_new_tokens,
    check_words,
    count_of,
    listed_of,
    named,
    prompts_of,
    questions_of,
    sampling_of,
    seeds_of,
    shape_of,
    tokens_asked_for,
)
from pictish.pipelines.chat import Answer, Chat, asked
from pictish.pipelines.language import Said
from pictish.pipelines.parts import ModelParts
from pictish.pipelines.progress import Callback, Cancel, Run
from pictish.pipelines.recipe import origin_of, with_origin
from pictish.pipelines.region import Region
from pictish.pipelines.settings import GenerationConfig, Settings, with_settings

if TYPE_CHECKING:
    import torch

    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.pipelines.text_to_image import TextToImage

logger = logging.getLogger(__name__)

AnyPicture = TypeVar("AnyPicture", bound=Picture)


class Pipeline(ModelParts):
    """A model folder at work: `Pipeline.from_pretrained("starter").generate("a red apple", seed=0)`.

    Parts are loaded on first use, once, also from several threads. Images are given as a path, the bytes of a
    file, a PIL image of any mode or a uint8 array (height, width[, 3 or 4]); transparent pixels are on white.
    Images returned are RGB. A list in gives a list out.

    Shared arguments: `seed` (default 0) makes a call reproducible on the same machine; a list has a seed for
    each image. A `torch.Generator` as `generator` draws the seeds instead, so that calls in a row differ.
    `batch_size` images are computed at a time. `callback` gets a `Progress` after each step, and `cancel` (a
    `threading.Event`, or a function that returns True) is asked between steps: the call then raises
    `Cancelled`.

    ValueError, in one line, is raised for arguments out of range, images that cannot be decoded and model
    folders that are damaged or lack a part; OSError for files that cannot be read.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._compared: set[str] = set()  # prompts that were compared with the training captions

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
        adaptor: str | None = None,
        seed: Seed = None,
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
        `aspect_ratio` is (width, height), such as (3, 2); square by default. `adaptor` is the name
        of one to read the language model through. `config` and the fields of
        `GenerationConfig` as keywords, which take precedence, leave what is None to the model.
        `pictish.save_image` stores an image with how it was drawn.
        """
        config = with_settings(config, settings)
        prompts, seeds = prompts_of(prompt, images, num_images, seed, generator)
        shape = shape_of(aspect_ratio)
        given = tuple(digest_of(one) for one in prompts[0] if not isinstance(one, str)) if prompts else ()
        aspect = None if aspect_ratio is None else "{}:{}".format(*aspect_ratio)
        run = Run(len(prompts), callback, cancel)
        drawer = self.text_to_image(self._decoder(config), adaptor)
        drawer.reconstructor.settled(config.drawing, generated=True)  # refused before anything is generated
        self._hint_at_far_prompts(drawer, prompts)
        drawn: list[Image.Image] = []
        for batch in batches(len(prompts), batch_size, run):
            made = drawing.generate(
                drawer,
                prompts[batch],
                seeds[batch],
                config,
                shapes=[shape] * len(prompts[batch]),
                language_progress=run.steps("language_model", batch.start),
                decoder_progress=run.steps("decoder", batch.start),
            )
            for one, said, own in zip(made, prompts[batch], seeds[batch], strict=True):
                words = said[-1] if isinstance(said[-1], str) else None
                origin = origin_of(self, words, given, own, config, one, aspect=aspect, adaptor=adaptor)
                drawn.append(with_origin(one.image, origin))
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
        adaptor: str | None = None,
        seed: Seed = None,
        generator: "torch.Generator | None" = None,
        batch_size: int = 8,
        config: GenerationConfig | None = None,
        callback: Callback | None = None,
        cancel: Cancel | None = None,
        **settings: Unpack[Settings],
    ) -> TokenizedImage | list[TokenizedImage]:
        """The tokens of the images that `generate` gives for the same arguments; no decoder is loaded."""
        config = with_settings(config, settings)
        prompts, seeds = prompts_of(prompt, images, num_images, seed, generator)
        shape = shape_of(aspect_ratio)
        run = Run(len(prompts), callback, cancel)
        drawer = self.text_to_image(adaptor=adaptor)
        self._hint_at_far_prompts(drawer, prompts)
        drawn: list[TokenizedImage] = []
        for batch in batches(len(prompts), batch_size, run):
            drawn += drawer.tokens(
                prompts[batch],
                drawing.generators(seeds[batch]),
                config,
                shapes=[shape] * len(prompts[batch]),
                progress=run.steps("language_model", batch.start),
            )
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
        region: tuple[int, int, int, int] | None = None,
        seed: Seed = None,
        generator: "torch.Generator | None" = None,
        batch_size: int = 8,
        config: GenerationConfig | None = None,
        callback: Callback | None = None,
        cancel: Cancel | None = None,
        **settings: Unpack[Settings],
    ) -> Image.Image | list[Image.Image]:
        """Change an image as the instruction says, in its aspect ratio: one image, or `num_images` in a list.

        With `keep_unchanged` pixels stay where the edit left the tokens unchanged, if the decoder can keep
        them. With a `region` (x, y, width, height) in pixels tokens change inside it alone, which takes a
        masked language model. Seeds and settings are those of `generate`, and `pictish edit` gives the same
        pixels.
        """
        config = with_settings(config, settings)
        source = load_image(image)
        check_words("instruction", instruction)
        seeds = seeds_of(count_of(num_images), seed, generator)
        run = Run(len(seeds), callback, cancel)
        drawer = self.text_to_image(self._decoder(config))
        drawer.reconstructor.settled(config.drawing, generated=True)
        where = None if region is None else Region(*region)
        given = (digest_of(source),)
        drawn: list[Image.Image] = []
        for batch in batches(len(seeds), batch_size, run):
            count = len(seeds[batch])
            made = drawing.edit(
                drawer,
                [source] * count,
                [instruction] * count,
                seeds[batch],
                config,
                keep_unchanged=keep_unchanged,
                region=where,
                language_progress=run.steps("language_model", batch.start),
                decoder_progress=run.steps("decoder", batch.start),
            )
            for one, own in zip(made, seeds[batch], strict=True):
                origin = origin_of(self, instruction, given, own, config, one, edit=True, region=where)
                drawn.append(with_origin(one.image, origin))
        return drawn[0] if num_images is None else drawn

    @overload
    def describe(
        self,
        image: list[AnyPicture] | tuple[AnyPicture, ...],
        question: str | Sequence[str | None] | None = None,
        **options: Unpack[DescribeOptions],
    ) -> list[str]: ...

    @overload
    def describe(
        self, image: Picture, question: list[str] | tuple[str, ...], **options: Unpack[DescribeOptions]
    ) -> list[str]: ...

    @overload
    def describe(
        self, image: Picture, question: str | None = None, **options: Unpack[DescribeOptions]
    ) -> str: ...

    def describe(
        self,
        image: Picture | list[AnyPicture] | tuple[AnyPicture, ...],
        question: str | Sequence[str | None] | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        features: bool | None = None,
        lemmas: bool = False,
        adaptor: str | Sequence[str | None] | None = None,
        seed: Seed = None,
        generator: "torch.Generator | None" = None,
        batch_size: int = 8,
        callback: Callback | None = None,
        cancel: Cancel | None = None,
    ) -> str | list[str]:
        """A caption of an image, or the answer to a question about it; for a list of images a list of texts.

        A list of questions has one for each image, or several for a single image, and gives a list as well.
        Without sampling settings the model's own way is taken, greedy or beam search; with one of
        `temperature`, `top_k`, `top_p` and `min_p` the text is sampled, at temperature 1 by default.
        `features` selects whether images enter as continuous features or as codes, `lemmas` reduces nouns and
        verbs of answers to their base form (needs spaCy). At most `max_new_tokens` text tokens are written.
        `adaptor` names the adaptor that answers, for all images or one for each (None: the model itself).
        """
        from pictish.pipelines.describe import Describe

        images, questions = questions_of(image, question)
        loaded = {id(one): load_image(one) for one in images}  # one that comes several times is read once
        pictures = [loaded[id(one)] for one in images]
        alone = not isinstance(image, list | tuple) and isinstance(question, str | None)
        sampling = sampling_of(temperature, top_k, top_p, min_p)
        check_max_new_tokens(max_new_tokens)
        seeds = seeds_of(len(pictures), seed, generator)
        run = Run(len(pictures), callback, cancel)
        written: list[str] = []
        if self.chats:
            if features is False or lemmas or adaptor is not None:
                raise ValueError(
                    "codes, lemmas, adaptor: this model sees through a vision tower, and answers as it is"
                )
            dialogues = [asked(*one) for one in zip(pictures, questions, strict=True)]
            own = {"max_new_tokens": max_new_tokens, "sampling": sampling}
            answers = self._answers(dialogues, seeds, batch_size, run, **own)
            written = [answer.text for answer in answers]
            return written[0] if alone else written
        languages = self.languages_for(adaptor, len(pictures))
        for batch in batches(len(pictures), batch_size, run):
            written += Describe(languages[batch][0]).batch(
                pictures[batch],
                questions[batch],
                languages=languages[batch],
                continuous=features,
                max_new_tokens=max_new_tokens,
                lemmas=lemmas,
                sampling=sampling,
                generators=None if sampling is None else drawing.generators(seeds[batch]),
                progress=run.steps("language_model", batch.start),
            )
        return written[0] if alone else written

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        suffix: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: Seed = None,
        generator: "torch.Generator | None" = None,
        callback: Callback | None = None,
        cancel: Cancel | None = None,
    ) -> Answer:
        """The next message of a dialogue: its `text`, and the `settings` that it was sampled with.

        A message has a `role` ("system", "user" or "assistant") and `content`: text, or a list of texts and
        images, which stand anywhere in it. For models with a vision tower, or that read text alone; sampling
        is as in `describe`. A masked model can be given the end of its message, `suffix`, and writes what
        stands before.
        """
        if not self.chats:
            raise ValueError("chat: this model was not made for dialogues; describe answers a question")
        sampling = sampling_of(temperature, top_k, top_p, min_p)
        check_max_new_tokens(max_new_tokens)
        seeds, run = seeds_of(1, seed, generator), Run(1, callback, cancel)
        own = {"max_new_tokens": max_new_tokens, "sampling": sampling, "suffix": suffix}
        return self._answers([messages], seeds, 1, run, **own)[0]

    def _answers(
        self, dialogues: Sequence[Any], seeds: Sequence[int], batch_size: int, run: Run, **settings: Any
    ) -> list[Answer]:
        written: list[Answer] = []
        for batch in batches(len(dialogues), batch_size, run):
            generators = None if settings["sampling"] is None else drawing.generators(seeds[batch])
            steps = run.steps("language_model", batch.start)
            chat = Chat(self.language_model)
            written += chat.batch(dialogues[batch], generators=generators, progress=steps, **settings)
        return written

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
        seed: Seed = None,
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
        listed = listed_of(images)
        sampled = seed is not None or generator is not None
        how_many = tokens_asked_for(budget, threshold, quality, seed, generator, self.tokenizer.cells)
        seeds = seeds_of(len(listed), seed, generator) if sampled else []
        run = Run(len(listed), callback, cancel)
        found: list[TokenizedImage] = []
        for batch in batches(len(listed), batch_size, run):
            pictures = [named(place, listed, max_pixels) for place in range(batch.start, batch.stop)]
            generators = drawing.generators(seeds[batch]) if sampled else None
            found += self.tokenizer.tokenize(pictures, generators=generators, **how_many)
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
        seed: Seed = None,
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
        seeds = seeds_of(len(listed), seed, generator, step=0)
        run = Run(len(listed), callback, cancel)
        drawn: list[Image.Image] = []
        for batch in batches(len(listed), batch_size, run):
            drawn += self._decoder(config)(
                listed[batch],
                config.size,
                generators=drawing.generators(seeds[batch]),
                drawing=config.drawing,
                progress=run.steps("decoder", batch.start),
            )
        return drawn[0] if isinstance(tokens, TokenizedImage) else drawn

    @property
    def default_config(self) -> GenerationConfig:
        """The settings that `generate` uses where nothing else is asked for."""
        reconstructor = self.reconstructor()
        config = self.text_to_image(reconstructor).checked(GenerationConfig(), pictures=False)
        pixels = reconstructor.settled(config.drawing, generated=True)
        return dataclasses.replace(
            config,
            num_inference_steps=pixels.steps,
            decoder_guidance_scale=pixels.guidance,
            scheduler=pixels.scheduler,
            upscale=pixels.upscale,
            size=reconstructor.usual_size(pixels),
        )

    def _decoder(self, config: GenerationConfig) -> "Reconstructor":
        return self.reconstructor(preview=config.num_inference_steps == 0)

    def _hint_at_far_prompts(self, drawer: "TextToImage", prompts: Sequence[Sequence[Said]]) -> None:
        """Warn, once for each prompt of words alone, where no training caption is close to it."""
        alone = dict.fromkeys(said[0] for said in prompts if len(said) == 1)
        new = [words for words in alone if isinstance(words, str) and words not in self._compared]
        self._compared.update(new)
        for line in drawer.far_prompt_hints(new) if new else ():
            logger.warning("%s", line)
