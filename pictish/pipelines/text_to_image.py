"""Words, or words and images, to an image."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pictish.data.tokens import TokenizedImage
from pictish.io.files import one_line
from pictish.io.model_folder import locate_model
from pictish.lm.captions import CAPTIONS, read_captions
from pictish.lm.config import ImageGenerationConfig
from pictish.pipelines.language import Language, Precision, Said
from pictish.pipelines.reconstruct import DEFAULT_SIZE, Reconstructor
from pictish.pipelines.region import Region, cells_in, redraws
from pictish.pipelines.settings import GenerationConfig, settle_codes
from pictish.training.isolation import loading

if TYPE_CHECKING:
    import torch

    from pictish.lm.autoregressive import DrawIds, Progress, Prompt
    from pictish.lm.grammar import GenerationConstraints, Segment
    from pictish.lm.sampler import Redraw
    from pictish.pipelines.nearest import Nearest

BASE = 256  # pixels of the longer side of an image that is to have an aspect ratio, at least


class TextToImage:
    """A language model that writes images as tokens, and what decodes them; `drawing.generate` does both."""

    def __init__(
        self, language: Language, reconstructor: Reconstructor | None = None, captions: Path | None = None
    ) -> None:
        self.language = language
        self._reconstructor = reconstructor  # None: for tokens alone
        self.captions = captions  # captions.json of the language model; read when it is asked for

    @classmethod
    @loading
    def from_folder(
        cls,
        folder: str | Path = "starter",
        device: "str | torch.device" = "cpu",
        *,
        steps: int | None = None,
        lowres: bool = False,
        precision: Precision = "float32",
    ) -> "TextToImage":
        """Load all parts of one model folder, or the shipped `"starter"`; ValueError when one is missing.

        With `steps` 0 pixels come from the preview, with `lowres` from the decoder of low resolution.
        `precision` is that of language model and denoiser.
        """
        language = Language.from_folder(folder, device, precision)
        reconstructor = Reconstructor.from_folder(
            folder, device, language.tokenizer, steps=steps, lowres=lowres, precision=precision
        )
        return cls(language, reconstructor, locate_model(folder, "lm") / CAPTIONS)

    @property
    def reconstructor(self) -> Reconstructor:
        """What decodes tokens to pixels."""
        assert self._reconstructor is not None, "made for tokens alone"
        return self._reconstructor

    @property
    def usual(self) -> ImageGenerationConfig:
        """How the model draws tokens where nothing else is asked for."""
        return self.language.model.defaults.drawing

    def settled(self, config: GenerationConfig, *, pictures: bool) -> GenerationConfig:
        """The config with the model's defaults for tokens, as `settle_codes`; `pictures`: any in prompts."""
        most = self.language.image_tokens.max_tokens
        return settle_codes(config, self.usual, most, pictures=pictures, ranks=self.ranks)

    @property
    def ranks(self) -> bool:
        """Whether the model can rank candidates: one after the other it reads codes, then their caption."""
        model = self.language.model
        return model.masked is None and not model.defaults.continuous

    def checked(self, config: GenerationConfig, *, pictures: bool) -> GenerationConfig:
        """As `settled`; ValueError for more codes than an image of this model has, and for candidates that it
        cannot rank."""
        settled, most = self.settled(config, pictures=pictures), self.language.image_tokens.max_tokens
        assert settled.min_codes is not None
        assert settled.max_codes is not None
        if not 1 <= settled.min_codes <= settled.max_codes <= most:
            raise ValueError(
                f"{settled.min_codes} to {settled.max_codes} tokens asked for; "
                f"an image of this model has 1 to {most}"
            )
        if settled.best_of != 1 and (pictures or not self.ranks):
            what = (
                "prompts with images have no candidates" if pictures else "this model cannot rank candidates"
            )
            raise ValueError(f"best_of: {settled.best_of} asked for, and {what}; 1 fits")
        return settled

    def constraints(self, settled: GenerationConfig) -> "GenerationConstraints":
        """What may be written for one image, by a config that is `checked`."""
        from pictish.lm.grammar import one_image

        assert settled.min_codes is not None
        assert settled.max_codes is not None
        cells = self.language.model.vocabulary.cells
        constraints = one_image(settled.max_codes, settled.min_codes, cells=cells)
        if self.usual.ignored_ids:  # a model that `import lavit` made
            from pictish.pipelines.lavit_replay import ignoring

            constraints = ignoring(constraints, self.usual.ignored_ids)
        return constraints

    def nearest_captions(self, prompts: Sequence[str], count: int = 3) -> "list[Nearest]":
        """The training captions nearest to each prompt, with scores; `Nearest.far` says when none is near.

        By meaning where `pictish[search]` is installed and no caption has all words of it; else by words.
        Without a captions.json in the model's folder no prompt has any. ValueError for one that is damaged.
        """
        from pictish.pipelines.nearest import nearest_captions
        from pictish.pipelines.sentences import embedded

        known = [] if self.captions is None else read_captions(self.captions)
        return nearest_captions(prompts, known, count, embedded)

    def far_prompt_hints(self, prompts: Sequence[str]) -> list[str]:
        """A line for each prompt that no training caption is near to, with the nearest; raises nothing.

        Where prompts cannot be compared with captions one line says why.
        """
        from pictish.pipelines.nearest import hints

        try:
            return hints(self.nearest_captions(list(dict.fromkeys(prompts))))
        except Exception as error:  # a hint is no reason not to generate
            return [f"cannot compare prompts with training captions: {one_line(error)}"]

    def tokens(
        self,
        prompts: Sequence[Sequence[Said]],
        generators: "Sequence[torch.Generator]",
        config: GenerationConfig | None = None,
        *,
        shapes: Sequence[tuple[int, int]] | None = None,
        regions: Sequence[Region] | None = None,
        progress: "Progress | None" = None,
    ) -> list[TokenizedImage]:
        """Tokens of one image a prompt, which `shapes` (height, width) gives a size, square by default.

        They have cells if the tokenizer places codes. What `config` leaves open is the model's choice.
        The same batch, generator seeds and weights give the same tokens; another batch may round differently.
        With `regions`, one a prompt, the first image of each comes back with other tokens in its region
        alone, which takes a masked language model. With `best_of`, the generators of further candidates come
        from the seeds of those given, and as many images are drawn at a time as without. `progress` is called
        after each step of a batch. Raises ValueError for an empty prompt and for one that does not fit the
        model's context.
        """
        settled = self.checked(config or GenerationConfig(), pictures=any(map(holds_images, prompts)))
        redraw = None
        if regions is not None:
            sources = [next(one for one in said if isinstance(one, Image.Image)) for said in prompts]
            tokenizer = self.language.tokenizer
            anew = [
                cells_in(region, (source.height, source.width), tokenizer.grid)
                for source, region in zip(sources, regions, strict=True)
            ]
            redraw = redraws(tokenizer, sources, anew)
        count = settled.best_of
        assert count is not None
        if count == 1:
            drawn = self.draw(self._prompts(prompts), generators, settled, progress, redraw=redraw)
            return self._images_of(drawn, shapes)
        return self._images_of(self._ranked(prompts, generators, settled, count, progress), shapes)

    def _ranked(
        self,
        prompts: Sequence[Sequence[Said]],
        generators: "Sequence[torch.Generator]",
        settled: GenerationConfig,
        count: int,
        progress: "Progress | None",
    ) -> "list[Sequence[Segment]]":
        """The best of `count` drawings of each prompt."""
        from pictish.lm.rerank import candidate_generators

        found: list[Sequence[Segment]] = []
        group = max(1, len(prompts) // count)  # prompts, so that the batch is as large as without candidates
        for start in range(0, len(prompts), group):
            some = prompts[start : start + group]
            read = [prompt for prompt in self._prompts(some) for _ in range(count)]
            own = generators[start : start + group]
            drawn = self.draw(
                read, [one for each in own for one in candidate_generators(each, count)], settled, progress
            )
            candidates = [drawn[at : at + count] for at in range(0, len(drawn), count)]
            found += map(self.best, candidates, some)
        return found

    def best(self, candidates: "Sequence[Sequence[Segment]]", said: Sequence[Said]) -> "Sequence[Segment]":
        """Of several drawings the one that `said` describes best, as the model finds; the first of equals."""
        from pictish.lm.grammar import ImageSegment
        from pictish.lm.rerank import caption_scores

        if len(candidates) == 1:
            return candidates[0]
        words = [one for one in said if isinstance(one, str)]
        images = [one for segments in candidates for one in segments if isinstance(one, ImageSegment)]
        return candidates[int(caption_scores(self.language.model, images, words).argmax())]

    def _images_of(
        self, drawn: "Iterable[Sequence[Segment]]", shapes: Sequence[tuple[int, int]] | None
    ) -> list[TokenizedImage]:
        return [
            self.image_of(segments, shapes[number] if shapes else None)
            for number, segments in enumerate(drawn)
        ]

    def image_of(self, segments: "Sequence[Segment]", shape: tuple[int, int] | None = None) -> TokenizedImage:
        """The one image that was written, of a `shape` (height, width), square by default."""
        import numpy as np

        from pictish.lm.grammar import ImageSegment

        (segment,) = segments
        assert isinstance(segment, ImageSegment)
        tokenizer = self.language.tokenizer
        return TokenizedImage(
            ids=np.array(segment.codes, dtype=np.int64),
            cells=None if segment.cells is None else np.array(segment.cells, dtype=np.int64),
            grid=tokenizer.grid,
            size=shape or (DEFAULT_SIZE, DEFAULT_SIZE),
            tokenizer=tokenizer.fingerprint,
            codebook_size=tokenizer.codebook_size,
        )

    def draw(
        self,
        prompts: "Sequence[Prompt]",
        generators: "Sequence[torch.Generator]",
        settled: GenerationConfig,
        progress: "Progress | None",
        draw_ids: "DrawIds | None" = None,
        redraw: "Sequence[Redraw] | None" = None,
    ) -> "list[list[Segment]]":
        """What is written behind prompts that have been read, by a config that is `checked`."""
        from pictish.lm.sampler import PictureRequest, sampler_of

        model = self.language.model
        request = PictureRequest(
            self.constraints(settled),
            settled.sampling,
            settled.guidance(model.defaults),
            self.language.tokenizer.grid,
            draw_ids,
        )
        drawn = sampler_of(model).pictures(prompts, request, generators, redraw=redraw, progress=progress)
        return [[one] for one in drawn]

    def _prompts(self, prompts: Sequence[Sequence[Said]]) -> "list[Prompt]":
        """Prompts to draw; one that comes several times is read once."""
        made: dict[tuple[str | int, ...], Prompt] = {}
        keys = [tuple(one if isinstance(one, str) else id(one) for one in said) for said in prompts]
        for key, said in zip(keys, prompts, strict=True):
            if key not in made:
                made[key] = self.language.prompt(said, draw=True)
        return [made[key] for key in keys]


def holds_images(said: Sequence[Said]) -> bool:
    """Whether images are among what is said."""
    return any(isinstance(one, Image.Image) for one in said)


def shape_in(width: int, height: int) -> tuple[int, int]:
    """(height, width) in pixels of an image with this aspect ratio, exactly, `BASE` pixels or more long."""
    scale = -(-BASE // max(width, height))  # whole, so that the ratio stays exact
    return height * scale, width * scale
