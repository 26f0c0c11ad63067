"""What turns images into tokens: a tokenizer, processes that decode ahead of it, and how much is kept."""

import contextlib
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pictish.data.loader import Decoded, ImageBytes, WorkerPool, decode_images
from pictish.data.tokens import TokenizedImage
from pictish.io.finding import File

if TYPE_CHECKING:
    from pictish.tokenizer.config import TokenizerConfig
    from pictish.tokenizer.dynamic import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """How many patches are kept: by threshold, by budget, or by an expected PSNR in dB (`quality`).

    Or they are drawn: from a seed and the image's name, or as LaVIT draws.
    """

    budget: int | None = None
    threshold: float | None = None
    seed: int | None = None
    gumbel: bool = False
    quality: float | None = None

    @classmethod
    def of(
        cls,
        budget: int | None,
        threshold: float | None,
        sample: bool,
        seed: int | None,
        gumbel: bool = False,
        quality: float | None = None,
    ) -> "Selection":
        """From the command's flags; ValueError for two that exclude each other."""
        asked = {"--budget": budget is not None, "--threshold": threshold is not None}
        asked |= {"--quality": quality is not None, "--sample": sample, "--gumbel": gumbel}
        chosen = [flag for flag, given in asked.items() if given]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} were given; they exclude each other")
        if seed is not None and not (sample or gumbel):
            logger.warning("--seed is ignored without --sample or --gumbel")
        return cls(budget, threshold, (seed or 0) if sample or gumbel else None, gumbel, quality)

    def check(self, tokenizer: "TokenizerConfig") -> None:
        """ValueError for a setting that this model cannot follow."""
        cells = tokenizer.encoder.grid**2
        if self.budget is not None and self.budget > cells:
            raise ValueError(f"--budget {self.budget}: an image of this model has 1 to {cells} tokens")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"--threshold {self.threshold}: a score lies between 0 and 1")
        if self.quality is not None:
            if not tokenizer.predicts_errors:
                raise ValueError(
                    "--quality: this tokenizer does not predict its errors; give --budget or --threshold"
                )
            if not 0 < self.quality < 100:
                raise ValueError(f"--quality {self.quality}: decibels between 0 and 100 fit")

    def settings(self) -> dict[str, Any]:
        """What decides the bytes, for the manifest."""
        own = {"gumbel": True} if self.gumbel else {}
        knobs = {"budget": self.budget, "quality": self.quality, "threshold": self.threshold}
        return {**knobs, "seed": self.seed, **own}

    def arguments(self, names: Sequence[str]) -> dict[str, Any]:
        """Keywords of `Tokenizer.tokenize_pixels` for images of these names."""
        if self.seed is None:
            return {"budget": self.budget, "quality": self.quality, "threshold": self.threshold}
        import torch

        if self.gumbel:
            from pictish.pipelines.lavit_replay import gumbel

            return {"keep": gumbel([torch.Generator().manual_seed(self.seed) for _ in names])}
        seeds = [hashlib.sha256(f"{self.seed}/".encode() + os.fsencode(name)).digest()[:7] for name in names]
        return {"generators": [torch.Generator().manual_seed(int.from_bytes(seed, "big")) for seed in seeds]}


@dataclass(frozen=True)
class BatchTokenizerSettings:
    """All that another process needs to make the same machine; plain JSON by `dataclasses.asdict`."""

    model: str
    device: str
    selection: Selection
    workers: int  # processes that decode; 0: the machine's own does
    batch_size: int
    max_pixels: int

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "BatchTokenizerSettings":
        """Undo `dataclasses.asdict`."""
        return cls(**{**facts, "selection": Selection(**facts["selection"])})


@contextlib.contextmanager
def open_batch_tokenizer(settings: BatchTokenizerSettings) -> Iterator["BatchTokenizer"]:
    """Load the tokenizer while the decoding processes start; ValueError for settings it cannot follow."""
    from pictish.tokenizer.dynamic import Tokenizer
    from pictish.training.runtime import resolve_device

    with WorkerPool(settings.workers) if settings.workers else contextlib.nullcontext() as pool:
        tokenizer = Tokenizer.from_folder(settings.model, device=resolve_device(settings.device))
        settings.selection.check(tokenizer.network.config)
        decoding = {
            "side": tokenizer.image_size,
            "exact": tokenizer.exact_resize,
            "workers": pool or 0,
            "max_pixels": settings.max_pixels,
            "prefetch": 3 * settings.batch_size + 16,
        }
        yield BatchTokenizer(tokenizer, settings.selection, decoding, settings.batch_size)


@dataclass(frozen=True)
class BatchTokenizer:
    """A tokenizer at work."""

    tokenizer: "Tokenizer"
    selection: Selection
    decoding: dict[str, Any]
    batch_size: int

    def tokenize(
        self, files: Iterable[File | ImageBytes], skip: Callable[[str], str | None] | None = None
    ) -> Generator[tuple[Decoded, TokenizedImage | None], None, None]:
        """Each image in order, with its tokens unless it is broken or skipped; decoding runs ahead.

        Two batches are under way, so that no core waits where one of them has little to do.
        """
        under_way: deque[Future[list[tuple[Decoded, TokenizedImage | None]]]] = deque()
        with (
            ThreadPoolExecutor(2, thread_name_prefix="pictish-batch") as pool,
            contextlib.closing(decode_images(files, skip=skip, **self.decoding)) as decoded,
        ):
            batch: list[Decoded] = []
            pictures = 0
            for one in decoded:
                batch.append(one)
                pictures += one.pixels is not None
                if pictures in (0, self.batch_size) or len(batch) >= 8 * self.batch_size:
                    under_way.append(pool.submit(self._batch, batch))
                    batch, pictures = [], 0
                    if len(under_way) == 2:
                        yield from under_way.popleft().result()
            under_way.append(pool.submit(self._batch, batch))
            while under_way:
                yield from under_way.popleft().result()

    def _batch(self, batch: list[Decoded]) -> list[tuple[Decoded, TokenizedImage | None]]:
        import numpy as np
        import torch

        whole = [one for one in batch if one.pixels is not None and one.size is not None]
        tokens: Iterator[TokenizedImage] = iter(())
        if whole:
            pixels = torch.from_numpy(np.stack([one.pixels for one in whole if one.pixels is not None]))
            sizes = [one.size for one in whole if one.size is not None]
            arguments = self.selection.arguments([one.file.name for one in whole])
            tokens = iter(self.tokenizer.tokenize_pixels(pixels, sizes, **arguments))
        return [(one, next(tokens) if one.pixels is not None else None) for one in batch]
