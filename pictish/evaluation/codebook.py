"""What the codes of a tokenizer stand for: patches of real images that share a code.

Legend: S the tokenizer's side in pixels.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Unpack

import numpy as np
from PIL import Image

from pictish.data.images import png_bytes
from pictish.evaluation.drawing import code_sheet, crop_cell
from pictish.evaluation.metrics import CodeStatistics
from pictish.evaluation.pictures import Broken, Picture, PictureSource

if TYPE_CHECKING:
    from pictish.data.tokens import TokenizedImage
    from pictish.tokenizer.dynamic import Choice, Tokenizer

BATCH = 32
CODES, EXAMPLES = 16, 14
"""Rows and patches a row of a code sheet."""


class CodeExamples:
    """Where each code was used: its count, and a uniform sample of at most `EXAMPLES` of its uses.

    Gathered one image at a time; what is kept grows with the codebook, not with the number of images.
    """

    def __init__(self, codebook_size: int, tokenizer: str, grid: tuple[int, int], seed: int = 0) -> None:
        self.grid = grid
        self.statistics = CodeStatistics(codebook_size, tokenizer)
        self.uses: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """Code -> (index of the image, cell)."""
        self._generator = np.random.default_rng(seed)

    def add(self, index: int, image: "TokenizedImage") -> None:
        """Count the image with that index in its source."""
        assert image.cells is not None, "the tokenizer always says which cells it kept"
        before = self.statistics.counts.copy()
        self.statistics.add(image)
        for code, cell in zip(image.ids.tolist(), image.cells.tolist(), strict=True):
            before[code] += 1
            uses = self.uses[code]
            if len(uses) < EXAMPLES:
                uses.append((index, cell))
            elif (place := int(self._generator.integers(before[code]))) < EXAMPLES:
                uses[place] = (index, cell)


def gather_codes(
    pictures: Iterable[Picture | Broken],
    tokenizer: "Tokenizer",
    advance: Callable[[], None] = lambda: None,
    **choice: "Unpack[Choice]",
) -> CodeExamples:
    """Tokenize every image and note where each code is used; broken ones are passed over.

    `choice` is that of `Tokenizer.tokenize`; `advance` is called once for each image tokenized. ValueError
    when no image is left.
    """
    import torch

    examples = CodeExamples(tokenizer.codebook_size, tokenizer.fingerprint, tokenizer.grid)
    indices: list[int] = []
    sizes: list[tuple[int, int]] = []
    squares: list[np.ndarray] = []  # (S, S, 3) each: whole images do not pile up

    def finish() -> None:
        pixels = torch.from_numpy(np.stack(squares))
        tokens = tokenizer.tokenize_pixels(pixels, sizes, **choice)
        for index, token in zip(indices, tokens, strict=True):
            examples.add(index, token)
            advance()
        for batch in (indices, sizes, squares):
            batch.clear()

    for each in pictures:
        if isinstance(each, Broken):
            continue
        indices.append(each.index)
        sizes.append((each.image.height, each.image.width))
        squares.append(tokenizer.resize(each.image))
        if len(indices) == BATCH:
            finish()
    if indices:
        finish()
    if not examples.statistics.pictures:
        raise ValueError("no code to show: no readable image")
    return examples


def draw_codes(examples: CodeExamples, source: PictureSource) -> bytes:
    """PNG of patches that share a code, cut from the images themselves, for the most used codes."""
    statistics = examples.statistics
    summary = statistics.summary()
    most = statistics.most_used(CODES)
    by_picture: dict[int, list[tuple[int, int]]] = defaultdict(list)  # index -> (code, cell)
    for code, _ in most:
        for index, cell in sorted(examples.uses[code]):
            by_picture[index].append((code, cell))
    crops: dict[int, list[Image.Image]] = defaultdict(list)
    for picture in source.decode(set(by_picture)):
        if isinstance(picture, Picture):
            for code, cell in by_picture[picture.index]:
                crops[code].append(crop_cell(picture.image, cell, examples.grid))
    total = summary["tokens"]["total"]
    rows = [(f"code {code}", f"{count:,} uses, {count / total:.1%}", crops[code]) for code, count in most]
    subtitle = (
        f"The {len(most)} most used of {summary['codes_used']:,} codes seen in {summary['pictures']:,} "
        f"images ({total:,} tokens, a codebook of {summary['codebook_size']:,})"
    )
    return png_bytes(code_sheet("Patches that share a code", subtitle, rows, EXAMPLES))
