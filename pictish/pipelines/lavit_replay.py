"""What LaVIT's released code does (github.com/jy0205/LaVIT), number for number and bugs included.

For `tokenize --gumbel`, `generate --official-quirks`, models that `import lavit` has made, and
tools/compare_lavit.py, which compares with recorded numbers. Nothing else needs it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.data.tokens import TokenizedImage
from pictish.lm.autoregressive import Branch, DrawIds, Progress, Prompt
from pictish.lm.grammar import DecodingState, GenerationConstraints, Legal, Segment, State
from pictish.lm.sampler import Redraw
from pictish.lm.sampling import Sampling, filtered
from pictish.lm.sequence import Part, join
from pictish.lm.vocabulary import Vocabulary, text_ids
from pictish.pipelines.language import Language, Said
from pictish.pipelines.region import Region
from pictish.pipelines.settings import GenerationConfig
from pictish.pipelines.text_to_image import TextToImage, holds_images
from pictish.tokenizer.selector import rank
from pictish.training.isolation import inference

Generators = Sequence[torch.Generator] | torch.Generator  # one for each image or prompt, or one for all


# Which patches are kept


def gumbel(generators: Generators) -> Callable[[Tensor], Tensor]:
    """`keep` for `Tokenizer.encode`: logits (B, N) to a mask (B, N), as `gumbel_mask`; one patch at least.

    With a generator for each image its mask does not depend on its batch.
    """

    def keep(logits: Tensor) -> Tensor:
        if isinstance(generators, torch.Generator):
            drawn = gumbel_mask(logits, generators)
        else:
            assert len(generators) == len(logits), (len(generators), len(logits))
            own = [gumbel_mask(logits[[row]], generator) for row, generator in enumerate(generators)]
            drawn = torch.cat(own)
        return drawn | (rank(logits) == 0) & ~drawn.any(dim=1, keepdim=True)

    return keep


def gumbel_mask(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The keep mask (B, N) that the released code draws, from the same random numbers in the same order.

    Its hard Gumbel-softmax takes one exponential number for keeping and one for dropping each cell of the
    whole batch, (B, N, 2) at once, from torch's global generator: `torch.default_generator` after
    `torch.manual_seed` gives the masks of the official code on a CPU.
    """
    waits = torch.empty(*logits.shape, 2).exponential_(generator=generator).log().to(logits.device)
    keep, drop = F.logsigmoid(logits.float()) - waits[..., 0], F.logsigmoid(-logits.float()) - waits[..., 1]
    return keep >= drop  # the first of equals


# Ids between codes


@dataclass(frozen=True)
class IgnoringConstraints(GenerationConstraints):
    """A model may emit `ignored_ids` between codes: they count as codes do, but are dropped from the image.

    An image has at least one true code.
    """

    ignored_ids: tuple[int, ...] = ()

    def decoding(self, vocabulary: Vocabulary, inside: bool) -> DecodingState:
        """See GenerationConstraints."""
        if vocabulary.cells is not None and self.max_images:
            raise ValueError("ignored_ids are for models without skips; use ignored_ids=()")
        return _IgnoringState(vocabulary, self, inside)

    def legal(self, vocabulary: Vocabulary, width: int, device: torch.device | str = "cpu") -> Legal:
        """See GenerationConstraints."""
        legal = super().legal(vocabulary, width, device)
        return _IgnoringLegal(legal.table, legal.passed, self.ignored_ids)


def ignoring(constraints: GenerationConstraints, ids: Sequence[int]) -> IgnoringConstraints:
    """The same with ids that are ignored between codes."""
    known = {one.name: getattr(constraints, one.name) for one in fields(GenerationConstraints)}
    return IgnoringConstraints(**known, ignored_ids=tuple(ids))


class _IgnoringState(DecodingState):
    constraints: IgnoringConstraints

    @property
    def state(self) -> State | None:
        state = super().state
        return State.CODE if state is State.CODE_OR_END and not self.current else state

    @property
    def needs_code(self) -> bool:
        """Whether only a true code may come next, since the image has none and there is room for one id."""
        return not self.current and (self.count == self.constraints.max_codes - 1 or self.left == 2)

    def _take_inside(self, token: int) -> None:
        if token in self.constraints.ignored_ids:
            self.count += 1
        else:
            super()._take_inside(token)


@dataclass(frozen=True, eq=False)
class _IgnoringLegal(Legal):
    ignored_ids: tuple[int, ...] = ()

    def of(self, decodings: Sequence[DecodingState]) -> Tensor:
        legal = super().of(decodings)
        for row, decoding in zip(legal, decodings, strict=True):
            assert isinstance(decoding, _IgnoringState)
            if decoding.state in (State.CODE, State.CODE_OR_END) and not decoding.needs_code:
                row[list(self.ignored_ids)] = True
        return legal


# Generation


def together(sampling: Sampling, generator: torch.Generator, count: int) -> DrawIds:
    """Draws from one generator, as `torch.multinomial` does for a batch of `count` prompts at once.

    What prompts draw that are done already is thrown away.
    """

    def draw(logits: Tensor, numbers: Sequence[int]) -> Tensor:
        if sampling.temperature == 0:
            return logits.argmax(dim=1)
        clocks = torch.empty(count, logits.shape[1], device=generator.device)
        clocks.exponential_(generator=generator)
        return (filtered(logits, sampling) / clocks[list(numbers)].to(logits)).argmax(dim=1)

    return draw


class OfficialTextToImage(TextToImage):
    """Draws tokens as the released code does; a single generator draws for a batch as `together`.

    Where a prompt holds images, each has no markers around it, no other prompt is beside it, and at most as
    many tokens are drawn as the prompt has, and as an image has, whatever `max_codes` says.
    """

    ranks = False  # as the released code draws one image

    @classmethod
    def of(cls, drawer: TextToImage) -> "OfficialTextToImage":
        """The same model."""
        return cls(drawer.language, drawer._reconstructor, drawer.captions)

    def tokens(
        self,
        prompts: Sequence[Sequence[Said]],
        generators: Generators,
        config: GenerationConfig | None = None,
        *,
        shapes: Sequence[tuple[int, int]] | None = None,
        regions: Sequence[Region] | None = None,
        progress: Progress | None = None,
    ) -> list[TokenizedImage]:
        """See TextToImage; ValueError for `regions`, which LaVIT cannot redraw."""
        if regions is not None:
            raise ValueError("LaVIT cannot redraw a region; a masked language model would fit")
        if not any(map(holds_images, prompts)):
            return super().tokens(prompts, generators, config, shapes=shapes, progress=progress)  # type: ignore[arg-type]  # only `_draw` reads them
        config, most = config or GenerationConfig(), self.language.image_tokens.max_tokens
        if config.max_codes is not None:  # LaVIT's is the length of the prompt, cells or not
            config = replace(config, max_codes=min(config.max_codes, most))
        settled = self.checked(config, pictures=True)
        assert settled.min_codes is not None
        assert settled.max_codes is not None
        bare = WithoutMarkers(self.language.tokenizer, self.language.model)
        drawn = []
        for number, said in enumerate(prompts):
            own = generators if isinstance(generators, torch.Generator) else [generators[number]]
            prompt = bare.prompt(said, draw=True)
            # the [IMG] behind a prompt is not counted
            room = min(len(prompt.full) - 1, most) if holds_images(said) else settled.max_codes
            mine = self.settled(config, pictures=holds_images(said))
            mine = replace(mine, min_codes=min(settled.min_codes, room), max_codes=room)
            drawn += self.draw([prompt], own, mine, progress)
        return self._images_of(drawn, shapes)

    def draw(
        self,
        prompts: Sequence[Prompt],
        generators: Generators,
        settled: GenerationConfig,
        progress: Progress | None,
        draw_ids: DrawIds | None = None,
        redraw: Sequence[Redraw] | None = None,
    ) -> list[list[Segment]]:
        if isinstance(generators, torch.Generator):
            draw_ids = together(settled.sampling, generators, len(prompts))
            generators = [generators] * len(prompts)
        return super().draw(prompts, generators, settled, progress, draw_ids, redraw)


class WithoutMarkers(Language):
    """Reads codes of images without the markers around them."""

    @inference
    def embed(self, parts: Sequence[Part], draw: bool) -> Branch:
        vocabulary = self.model.vocabulary
        joined = join("interleaved", parts, vocabulary, partial(text_ids, self.model.text_tokenizer))
        assert joined.features is None
        ids = joined.ids[~np.isin(joined.ids, (vocabulary.begin, vocabulary.end))]
        ids = np.append(ids, vocabulary.begin) if draw else ids
        embedded = self.model.embed(torch.from_numpy(ids)[None].to(self.tokenizer.device))[0]
        return Branch.of(embedded)
