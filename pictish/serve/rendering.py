"""The decoder's part of the engine: tokens to pixels, as many images at a time as a micro-batch holds."""

import time
from typing import TYPE_CHECKING, Any

from PIL import Image

from pictish.pipelines.drawing import render
from pictish.pipelines.progress import Cancelled
from pictish.serve.jobs import Draw, Picture, while_awaited
from pictish.serve.writing import Written

if TYPE_CHECKING:
    from pictish.pipelines.pipeline import Pipeline
    from pictish.pipelines.reconstruct import Reconstructor


class Renderer:
    """Images whose tokens are written and whose pixels are not."""

    def __init__(self, pipeline: "Pipeline") -> None:
        self.pipeline = pipeline
        self.waiting: list[tuple[float, Written]] = []
        self._seconds = 0.0  # that the last group took

    def add(self, written: Written) -> None:
        """Another image to decode."""
        self.waiting.append((time.monotonic(), written))

    def due(self, *, idle: bool) -> bool:
        """Whether to decode now.

        A group takes the same time however full it is, so one that is not full waits for more, but no longer
        than a group takes; not at all when nothing more is being written (`idle`).
        """
        self.waiting = [each for each in self.waiting if not each[1].job.cancelled]
        if not self.waiting:
            return False
        group = self._group()
        since = self.waiting[0][0]
        return idle or len(group) == self._most(group[0]) or time.monotonic() - since > self._seconds

    def render(self) -> int:
        """Decode the oldest image and those that go with it; how many that were."""
        group = self._group()
        self.waiting = [each for each in self.waiting if each[1] not in group]
        works = [_work(written) for written in group]
        begun = time.monotonic()
        try:
            drawn = render(
                self._reconstructor(group[0]),
                [written.tokens for written in group],
                [work.seed for work in works],
                works[0].config,
                sources=None if works[0].source is None else [_source(work) for work in works],
                progress=while_awaited([written.job for written in group]),
            )
        except Cancelled:
            return 0
        except Exception as error:
            for written in group:
                written.job.fail(error)
            return 0
        self._seconds = time.monotonic() - begun
        for written, work, one in zip(group, works, drawn, strict=True):
            image = one.image if work.mask is None else within(work.mask, one.image, _source(work))
            written.job.finish(Picture(image, one.tokens, written.prompt_tokens, one.kept))
        return len(group)

    def _group(self) -> list[Written]:
        """The oldest image, and the next ones with the same settings of the decoder."""
        oldest = self.waiting[0][1]
        alike = [written for _, written in self.waiting if _settings(written) == _settings(oldest)]
        return alike[: self._most(oldest)]

    def _most(self, written: Written) -> int:
        decoder = self._reconstructor(written).decoder
        return self.pipeline.tokenizer.micro_batch if decoder is None else decoder.model.config.micro_batch

    def _reconstructor(self, written: Written) -> "Reconstructor":
        return self.pipeline.reconstructor(preview=_work(written).config.num_inference_steps == 0)


def within(mask: Image.Image, image: Image.Image, source: Image.Image) -> Image.Image:
    """The image where the mask is white, the source elsewhere, both at the size of the image."""
    size = image.size
    return Image.composite(
        image,
        source.resize(size, Image.Resampling.BICUBIC),
        mask.resize(size, Image.Resampling.BILINEAR),
    )


def _work(written: Written) -> Draw:
    work = written.job.work
    assert isinstance(work, Draw)
    return work


def _source(work: Draw) -> Image.Image:
    assert work.source is not None
    return work.source


def _settings(written: Written) -> Any:
    work = _work(written)
    return work.config.drawing, work.config.size, work.source is None
