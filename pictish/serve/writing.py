"""The language model's part of the engine: ids of images and texts, one step for all of them.

A masked language model has no steps that requests could share exactly: what it writes is written whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from pictish.data.tokens import TokenizedImage
from pictish.lm.autoregressive import UNGUIDED, Prompt
from pictish.lm.continuous import ContinuousBatch, Member
from pictish.lm.grammar import GenerationConstraints, TextSegment
from pictish.lm.rerank import candidate_generators
from pictish.lm.sampling import Sampling
from pictish.lm.text import decode_text
from pictish.lm.vocabulary import text_ids
from pictish.pipelines.describe import MOST, Describe, describe_prompt
from pictish.pipelines.language import Said
from pictish.pipelines.progress import Cancelled
from pictish.pipelines.region import cells_under, redraws
from pictish.pipelines.settings import Drawing, GenerationConfig
from pictish.serve.jobs import Draw, Job, Piece, Preview, Started, Text, Write, while_awaited

if TYPE_CHECKING:
    from pictish.pipelines.pipeline import Pipeline

GREEDY = Sampling(temperature=0)


class _LanguageBatch:
    """The language model, or one of its adaptors, and what is being written through it.

    Adaptors have batches of their own, so that what one writes does not depend on the others.
    """

    def __init__(self, pipeline: "Pipeline", adaptor: str | None) -> None:
        self.drawer = pipeline.text_to_image(adaptor=adaptor)
        self.language = self.drawer.language
        self.describe = Describe(self.language)
        model = self.language.model
        self.masked = model.masked is not None
        self.sequences = ContinuousBatch(model.language, model.vocabulary)  # stays empty if masked
        self._prompt: tuple[tuple[Said, ...], Prompt] | None = None

    def prompt_of(self, said: tuple[Said, ...]) -> Prompt:
        """Images of one request come one after the other, and have one prompt."""
        if self._prompt is None or self._prompt[0] is not said:
            self._prompt = said, self.language.prompt(said, draw=True)
        return self._prompt[1]


@dataclass(eq=False)
class _Writing:
    """One job that is being written, and how much of it was sent: previews of the first, or letters."""

    job: Job
    batch: _LanguageBatch
    members: list[Member]  # one, or the candidates of an image
    sent: int = 0
    previews: int = 0

    @property
    def unfinished(self) -> list[Member]:
        """Those that still take part in the batch."""
        return [member for member in self.members if member in self.batch.sequences.members]


@dataclass(frozen=True, eq=False)
class Written:
    """The tokens of an image that is to be decoded."""

    job: Job
    tokens: TokenizedImage
    prompt_tokens: int


class Writer:
    """All that the language model is writing."""

    def __init__(self, pipeline: "Pipeline") -> None:
        self.pipeline = pipeline
        self.batches = {name: _LanguageBatch(pipeline, name) for name in (None, *pipeline.adaptors)}
        self.writing: list[_Writing] = []
        self.written: list[Written] = []  # images that were written whole

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self.writing or self.written)

    @property
    def sequences(self) -> int:
        """How many are written at the same time."""
        return sum(len(batch.sequences.members) for batch in self.batches.values())

    def begin(self, job: Job) -> bool:
        """Read the prompt of a job; whether steps are to follow, or all of it was written at once.

        ValueError for what the model cannot do.
        """
        assert isinstance(job.work, Draw | Write), job.work
        batch = self.batches[job.work.adaptor]
        match job.work:
            case Draw() as work:
                members = self._begin_drawing(batch, job, work)
            case Write() as work:
                members = self._begin_text(batch, job, work)
        if not members:
            return False
        self.writing.append(_Writing(job, batch, members))
        job.send(Started())
        return True

    def step(self) -> Iterator[Written]:
        """One id for everything; images that are complete."""
        whole, self.written = self.written, []
        yield from whole
        for one in list(self.writing):
            if one.job.cancelled:
                self._drop(one)
                continue
            try:
                for member in one.unfinished:
                    one.batch.sequences.choose(member)
                ended = not one.unfinished
                if isinstance(one.job.work, Draw) and not ended:
                    self._preview(one, one.job.work)
                elif isinstance(one.job.work, Draw):
                    written = self._best(one, one.job.work)
                else:
                    self._send_text(one, ended)
            except ValueError as error:
                self._drop(one)
                one.job.fail(error)
                continue
            if ended:
                self.writing.remove(one)
                if isinstance(one.job.work, Draw):
                    yield written
        for batch in self.batches.values():
            batch.sequences.read()

    def _drop(self, one: _Writing) -> None:
        self.writing.remove(one)
        for member in one.unfinished:
            one.batch.sequences.remove(member)

    # ---- images

    def _begin_drawing(self, batch: _LanguageBatch, job: Job, work: Draw) -> list[Member]:
        """One for each candidate; empty where the model is masked, and the image written."""
        reconstructor = self.pipeline.reconstructor(preview=work.config.num_inference_steps == 0)
        reconstructor.settled(work.config.drawing, generated=True)  # refused before anything is written
        if work.previews:
            self.pipeline.reconstructor(preview=True)
        pictures = any(isinstance(one, Image.Image) for one in work.said)
        settled = batch.drawer.checked(work.config, pictures=pictures)
        if batch.masked:
            self._draw_whole(batch, job, work, settled)
            return []
        assert settled.best_of is not None
        members: list[Member] = []
        try:
            for generator in candidate_generators(torch.Generator().manual_seed(work.seed), settled.best_of):
                members.append(
                    batch.sequences.add(
                        batch.prompt_of(work.said),
                        batch.drawer.constraints(settled),
                        sampling=settled.sampling,
                        guidance=settled.guidance(batch.language.model.defaults),
                        generator=generator,
                    )
                )
        except BaseException:  # no room for more: those before are nobody's
            for member in members:
                batch.sequences.remove(member)
            raise
        return members

    def _best(self, one: _Writing, work: Draw) -> Written:
        """The image of the best candidate, all of which are whole."""
        drawer = one.batch.drawer
        best = drawer.best([each.decoding.segments for each in one.members], work.said)
        return Written(one.job, drawer.image_of(best, work.shape), one.members[0].prompt_tokens)

    def _draw_whole(self, batch: _LanguageBatch, job: Job, work: Draw, settled: GenerationConfig) -> None:
        """All cells of an image; of an edit with a mask, those that the mask reaches into."""
        prompt, tokenizer, redraw = batch.prompt_of(work.said), batch.language.tokenizer, None
        if work.mask is not None:
            assert work.source is not None
            redraw = redraws(tokenizer, [work.source], [cells_under(work.mask, tokenizer.grid)])
        generator = torch.Generator().manual_seed(work.seed)
        try:
            (segments,) = batch.drawer.draw(
                [prompt], [generator], settled, while_awaited([job]), redraw=redraw
            )
        except Cancelled:
            return
        job.send(Started())
        tokens = batch.drawer.image_of(segments, work.shape)
        self.written.append(Written(job, tokens, len(prompt.full)))

    def _preview(self, one: _Writing, work: Draw) -> None:
        """Send what is drawn so far, of the first candidate, each time another part of the image is done."""
        decoding = one.members[0].decoding
        due = int(decoding.progress * (work.previews + 1))
        image = decoding.partial_image
        if due <= one.sent or image is None or one.previews == work.previews:
            return
        final = self.pipeline.reconstructor(preview=work.config.num_inference_steps == 0)
        size = work.config.size or final.usual_size(final.settled(work.config.drawing, generated=True))
        tokens = one.batch.drawer.image_of([image], work.shape)
        (drawn,) = self.pipeline.reconstructor(preview=True)([tokens], size, drawing=Drawing(upscale=1))
        one.job.send(Preview(drawn, one.previews))
        one.sent, one.previews = due, one.previews + 1

    # ---- texts

    def _begin_text(self, batch: _LanguageBatch, job: Job, work: Write) -> list[Member]:
        """Empty where the text is written at once: by a masked model, or by a search with beams."""
        model = batch.language.model
        defaults = model.defaults
        own_way = defaults.caption if work.question is None else defaults.answer
        prompt = describe_prompt(batch.language, work.image, work.question, defaults.continuous)
        if batch.masked or (own_way is not None and work.sampling is None):
            try:
                (text,) = batch.describe.batch(
                    [work.image],
                    [work.question],
                    max_new_tokens=work.max_new_tokens,
                    sampling=work.sampling,
                    generators=[torch.Generator().manual_seed(work.seed)],
                    progress=while_awaited([job]),
                    prompts=[prompt],
                )
            except Cancelled:
                return []
            job.send(Started())
            job.send(Piece(text))
            job.finish(Text(text, len(prompt.full), len(text_ids(model.text_tokenizer, text))))
            return []
        member = batch.sequences.add(
            prompt,
            GenerationConstraints(work.max_new_tokens or MOST),
            sampling=work.sampling or GREEDY,
            guidance=UNGUIDED,
            generator=torch.Generator().manual_seed(work.seed),
        )
        return [member]

    def _send_text(self, one: _Writing, ended: bool) -> None:
        (member,) = one.members
        decoding = member.decoding
        ids = [token for part in decoding.segments if isinstance(part, TextSegment) for token in part.ids]
        ids += decoding.current
        text = decode_text(one.batch.language.model.text_tokenizer, ids).strip()
        if len(text) > one.sent:
            one.job.send(Piece(text[one.sent :]))
            one.sent = len(text)
        if ended:
            new = decoding.constraints.max_new_tokens - decoding.left
            one.job.finish(Text(text, member.prompt_tokens, new, cut=not decoding.ended))
