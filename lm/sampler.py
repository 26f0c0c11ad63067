"""What a language model of either kind can be asked for: images and texts behind prompts.

`sampler_of` chooses by the model; whoever generates need not know which kind it is.

Legend: P prompts, K codes of an image, L tokens, V ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pictish.lm import autoregressive
from pictish.lm.autoregressive import DrawIds, Guidance, Progress, Prompt
from pictish.lm.config import FillingConfig
from pictish.lm.grammar import GenerationConstraints, ImageSegment, TextSegment
from pictish.lm.masked_batch import MaskedBatch
from pictish.lm.masked_sampling import (
    MaskedSampling,
    MaskState,
    Rules,
    fill,
    halton_order,
    uniform_of,
)
from pictish.lm.model import UnifiedModel
from pictish.lm.sampling import Sampling
from pictish.lm.sequence import dense_ids, picture_of
from pictish.lm.vocabulary import text_ids
from pictish.training.isolation import inference


@dataclass(frozen=True, eq=False)
class Redraw:
    """An image of which some cells are drawn anew, the others stay; one of these at least."""

    codes: npt.NDArray[np.integer]  # (K,)
    cells: npt.NDArray[np.integer]  # (K,), rising
    anew: npt.NDArray[np.bool_]  # (cells of the grid,)


@dataclass(frozen=True)
class PictureRequest:
    """How images are to be drawn."""

    constraints: GenerationConstraints  # as `one_image` gives them
    sampling: Sampling
    guidance: Guidance
    grid: tuple[int, int]  # rows, columns
    draw_ids: DrawIds | None = None  # of an autoregressive model, in place of `sampling`


class Sampler(Protocol):
    """Generates behind prompts of one model; ValueError for prompts and requests that do not fit it."""

    def pictures(
        self,
        prompts: Sequence[Prompt],
        request: PictureRequest,
        generators: Sequence[torch.Generator],
        *,
        redraw: Sequence[Redraw] | None = None,
        progress: Progress | None = None,
    ) -> list[ImageSegment]:
        """One image a prompt, or with `redraw` those again."""

    def texts(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None,
        *,
        suffix: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Ids of one text a prompt, without EOS; greedy sampling needs no generators.

        `suffix` is what follows each text and is seen while it is written, which takes a masked model.
        """


def sampler_of(model: UnifiedModel) -> Sampler:
    """The sampler of a model's kind."""
    return AutoregressiveSampler(model) if model.masked is None else MaskedSampler(model)


class AutoregressiveSampler:
    """One id after the other."""

    def __init__(self, model: UnifiedModel) -> None:
        self.model = model

    def pictures(
        self,
        prompts: Sequence[Prompt],
        request: PictureRequest,
        generators: Sequence[torch.Generator],
        *,
        redraw: Sequence[Redraw] | None = None,
        progress: Progress | None = None,
    ) -> list[ImageSegment]:
        """As `Sampler.pictures`."""
        if redraw is not None:
            raise ValueError(
                "an autoregressive language model cannot redraw a region; a masked one would fit"
            )
        written = autoregressive.generate(
            self.model.language,
            self.model.vocabulary,
            prompts,
            request.constraints,
            sampling=request.sampling,
            guidance=request.guidance,
            generators=generators,
            draw_ids=request.draw_ids,
            progress=progress,
        )
        found = [segment for segments in written for segment in segments]
        assert len(found) == len(prompts)
        return [segment for segment in found if isinstance(segment, ImageSegment)]

    def texts(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None,
        *,
        suffix: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """As `Sampler.texts`."""
        if suffix:
            raise ValueError("suffix: an autoregressive language model cannot see it; a masked one would fit")
        written = autoregressive.generate(
            self.model.language,
            self.model.vocabulary,
            prompts,
            GenerationConstraints(max_new_tokens),
            sampling=sampling,
            generators=generators,
            progress=progress,
        )
        return [
            [token for segment in segments if isinstance(segment, TextSegment) for token in segment.ids]
            for segments in written
        ]


class MaskedSampler:
    """All masks of an image, or of a block of text, a few at a time."""

    def __init__(self, model: UnifiedModel) -> None:
        assert model.masked is not None
        assert model.vocabulary.mask is not None
        self.model, self.form, self.mask = model, model.masked, model.vocabulary.mask
        self.device = next(model.parameters()).device
        self.width = model.language.get_input_embeddings().get_parameter("weight").shape[0]  # V

    @inference
    def pictures(
        self,
        prompts: Sequence[Prompt],
        request: PictureRequest,
        generators: Sequence[torch.Generator],
        *,
        redraw: Sequence[Redraw] | None = None,
        progress: Progress | None = None,
    ) -> list[ImageSegment]:
        """As `Sampler.pictures`. What stays of an image to `redraw` counts among its codes."""
        vocabulary, defaults = self.model.vocabulary, self.model.defaults.filling
        least, most = request.constraints.min_codes, request.constraints.max_codes
        if request.draw_ids is not None:
            raise ValueError("ids are drawn one by one of autoregressive language models alone")
        if vocabulary.cells is None or vocabulary.drop is None:
            raise ValueError("this masked language model writes no images")
        if not prompts:
            return []
        cells = vocabulary.cells
        if least > cells:
            raise ValueError(f"min_codes {least} asked for; an image has {cells} cells")
        ids = torch.full((len(prompts), cells), self.mask, device=self.device)
        masked = torch.ones_like(ids, dtype=torch.bool)
        if redraw is not None:
            for row, one in enumerate(redraw):
                whole = dense_ids(vocabulary.ids_of(one.codes), one.cells, vocabulary)
                masked[row] = torch.from_numpy(one.anew).to(self.device)
                ids[row] = torch.from_numpy(whole).to(self.device).masked_fill(masked[row], self.mask)
        behind = [vocabulary.end] if self.form.block_length is not None else [vocabulary.end, self.model.eos]
        state = self._state(ids, masked, behind)
        every = torch.arange(self.width, device=self.device)
        codes, drop = vocabulary.is_code(every), every == vocabulary.drop
        rules = Rules(
            self.mask,
            forbidden=~(codes | drop | (every == self.mask)),
            limits=((codes, most), (drop, cells - least)),
            order=torch.tensor(halton_order(*request.grid), device=self.device),
        )
        batch = MaskedBatch(
            self.model.language,
            prompts,
            self.mask,
            self.form,
            room=cells + len(behind),
            guidance=request.guidance,
            guided=codes | drop,
            cache=defaults.pictures.cache,
        )
        fill(
            batch,
            state,
            rules,
            settings_of(defaults.pictures),
            uniform_of(_one_each(generators, len(prompts))),
            sampling=request.sampling,
            last=cells,
            progress=progress,
        )
        return [self._picture(row) for row in state.ids[:, :cells].cpu().numpy()]

    def _picture(self, ids: npt.NDArray[np.int64]) -> ImageSegment:
        vocabulary = self.model.vocabulary
        codes, cells = picture_of(np.concatenate([[vocabulary.begin], ids, [vocabulary.end]]), vocabulary)
        assert cells is not None
        return ImageSegment(tuple(codes.tolist()), tuple(cells.tolist()))

    @inference
    def texts(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None,
        *,
        suffix: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """As `Sampler.texts`: blocks of masks are added, before the suffix, until a text ends."""
        vocabulary, filling = self.model.vocabulary, self.model.defaults.filling.texts
        if not prompts:
            return []
        if suffix and self.form.block_length is not None:
            raise ValueError("suffix: a model of block diffusion cannot see it; one without blocks would fit")
        every = torch.arange(self.width, device=self.device)
        forbidden = every >= vocabulary.text
        forbidden[list(vocabulary.unspoken)] = True
        forbidden[self.mask] = False
        first = torch.zeros_like(forbidden)
        first[[*vocabulary.blank, self.model.eos]] = True
        encode = partial(text_ids, self.model.text_tokenizer)
        ends = [token for token in (self.model.eos, vocabulary.turn_end) if token is not None]
        stops = (*((token,) for token in ends), *(tuple(encode(stop)) for stop in filling.stop_strings))
        block_length = self.form.block_length or filling.block_length
        length = min(block_length, max_new_tokens)
        ids = torch.full((len(prompts), length), self.mask, device=self.device)
        state = self._state(ids, torch.ones_like(ids, dtype=torch.bool), suffix)
        batch = MaskedBatch(
            self.model.language,
            prompts,
            self.mask,
            self.form,
            room=max_new_tokens + len(suffix),
            block_length=self.form.block_length,
            cache=filling.cache,
        )
        fill(
            batch,
            state,
            Rules(self.mask, forbidden, first=first, stops=stops),
            settings_of(filling),
            uniform_of(_one_each(generators, len(prompts))),
            sampling=sampling,
            block_length=block_length,
            last=length,
            limit=max_new_tokens,
            progress=progress,
        )
        written = state.ids.shape[1] - len(suffix)
        ends = state.end.clamp_max(written).tolist()
        return [ids[:end] for ids, end in zip(state.ids.tolist(), ends, strict=True)]

    def _state(self, ids: Tensor, masked: Tensor, behind: Sequence[int]) -> MaskState:
        """Spans of `ids` (P, L) with fixed ids `behind` them."""
        fixed = torch.tensor(behind, device=self.device, dtype=torch.long).expand(len(ids), -1)
        never = torch.zeros_like(fixed, dtype=torch.bool)
        masked = torch.cat([masked, never], dim=1)
        return MaskState(torch.cat([ids, fixed], dim=1), masked, masked.clone())


def settings_of(filling: FillingConfig) -> MaskedSampling:
    """The settings that a config stands for."""
    return MaskedSampling(
        filling.steps, filling.schedule, filling.remasking, filling.threshold, filling.correction
    )


def _one_each(generators: Sequence[torch.Generator] | None, count: int) -> Sequence[torch.Generator]:
    """A generator for each prompt; None: the same for each. ValueError for another number of them."""
    if generators is None:
        return [torch.Generator() for _ in range(count)]
    if len(generators) != count:
        raise ValueError(f"{count} prompts to sample for need as many generators, not {len(generators)}")
    return generators
