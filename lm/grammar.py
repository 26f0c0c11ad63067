"""Which ids are legal next: the state machine of constrained decoding, one `DecodingState` per prompt.

    outside an image    text ids, EOS, and [IMG] while an image is allowed and has room
    before anything      the same without EOS; with room for one id only those that show
    inside               codes only, below `min_codes`; then codes and [/IMG]; at `max_codes` [/IMG] only

Where the vocabulary has skips, a code takes the next cell of the grid, a skip passes over as many cells as it
says, and behind the last cell only [/IMG] is legal. A code follows each skip; a skip is legal while the cells
and ids that it leaves suffice for the codes that are still to come, one at least.

`max_new_tokens` holds to the id, markers and EOS counted: an image begins only where its shortest form still
fits, and its end is forced while there is room for it. So every image ends, and none is empty; nor is an
answer, even one that the model would end at once or fill with spaces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np
import torch
from torch import Tensor

from pictish.lm.sequence import picture_of
from pictish.lm.vocabulary import Vocabulary


@dataclass(frozen=True)
class GenerationConstraints:
    """What may be generated, and how much; ValueError for limits that contradict each other.

    Text only: `Request(100)`. Text and up to three images: `Request(500, max_images=3, max_codes=64)`.
    Without `text` images follow each other, as many as fit; `one_image` is the usual case.
    """

    max_new_tokens: int
    text: bool = True
    max_images: int = 0
    min_codes: int = 1
    max_codes: int = 256

    def __post_init__(self) -> None:
        if self.max_images < 0 or not (self.text or self.max_images):
            raise ValueError(f"text or at least one image must be allowed, max_images is {self.max_images}")
        if not 1 <= self.min_codes <= self.max_codes:
            raise ValueError(f"min_codes {self.min_codes} must be 1 to max_codes, which is {self.max_codes}")
        least = 1 if self.text else self.min_codes + 2
        if self.max_new_tokens < least:
            raise ValueError(f"max_new_tokens {self.max_new_tokens} asked for; at least {least} would fit")

    def reach(self, vocabulary: Vocabulary) -> int:
        """How many positions the new ids take at most: where these count cells, more than there are ids."""
        if not vocabulary.cell_positions:
            return self.max_new_tokens
        images = self.max_images * (vocabulary.skips + 2)  # the cells and [/IMG], or [IMG]
        return images + (self.max_new_tokens if self.text else 0)

    def decoding(self, vocabulary: Vocabulary, inside: bool) -> "DecodingState":
        """The state before the first id of a prompt, which ends `inside` an image or not."""
        return DecodingState(vocabulary, self, inside)

    def legal(self, vocabulary: Vocabulary, width: int, device: torch.device | str = "cpu") -> "Legal":
        """The legal ids of a model of `width` ids; ValueError for too few."""
        return legal_ids(vocabulary, width, device)


def one_image(max_codes: int, min_codes: int = 1, *, cells: int | None = None) -> GenerationConstraints:
    """The constraints for exactly one image and nothing else; `cells` as in the vocabulary."""
    # every code takes a cell and every skip passes one: there are never more ids than cells
    inner = max_codes if cells is None else min(2 * max_codes, cells)
    return GenerationConstraints(inner + 2, False, 1, min_codes, max_codes)


@dataclass(frozen=True)
class TextSegment:
    """Text ids without EOS, at least one."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ImageSegment:
    """An image's codes without any offset, at least one, and their cells where the vocabulary has skips."""

    codes: tuple[int, ...]
    cells: tuple[int, ...] | None = None


Segment = TextSegment | ImageSegment


class State(IntEnum):
    """What may come next, skips aside; the row of `Legal.table`."""

    VISIBLE = 0
    FIRST = auto()
    FIRST_OR_BEGIN = auto()
    TEXT = auto()
    TEXT_OR_BEGIN = auto()
    BEGIN = auto()
    CODE = auto()
    CODE_OR_END = auto()
    END = auto()


@dataclass(frozen=True, eq=False)
class Legal:
    """Which of a model's V ids may come next, on one device."""

    table: Tensor  # (states, V) bool; no skip is in it
    passed: Tensor | None  # (V,) cells that an id passes over, too many if it is no skip; None: no skips

    def of(self, decodings: "Sequence[DecodingState]") -> Tensor:
        """For lines that go on: bool (P, V)."""
        legal = self.table[[decoding.state for decoding in decodings]]
        if self.passed is None:
            return legal
        longest = torch.tensor([decoding.longest_skip for decoding in decodings], device=legal.device)
        return legal | (self.passed <= longest[:, None])


def legal_ids(vocabulary: Vocabulary, width: int, device: torch.device | str = "cpu") -> Legal:
    """The legal ids of a model of `width` ids; ValueError for too few."""
    if width < vocabulary.size:
        raise ValueError(f"the vocabulary has {vocabulary.size} ids, the model only {width}")
    ids = torch.arange(width)
    text, code = ids < vocabulary.text, vocabulary.is_code(ids)
    text[list(vocabulary.unspoken)] = False
    begin, end = ids == vocabulary.begin, ids == vocabulary.end
    first = text.clone()
    if vocabulary.eos is not None:
        first[vocabulary.eos] = False
    visible = first.clone()
    visible[list(vocabulary.blank)] = False
    table = torch.empty(len(State), width, dtype=torch.bool)
    table[State.VISIBLE], table[State.FIRST], table[State.FIRST_OR_BEGIN] = visible, first, first | begin
    table[State.TEXT], table[State.TEXT_OR_BEGIN], table[State.BEGIN] = text, text | begin, begin
    table[State.CODE], table[State.CODE_OR_END], table[State.END] = code, code | end, end
    passed = None
    if vocabulary.cells is not None:
        skips = vocabulary.ranges["skips"]
        passed = torch.full((width,), vocabulary.cells)
        passed[skips.holds(ids)] = torch.arange(1, vocabulary.cells)
        passed = passed.to(device)
    return Legal(table.to(device), passed)


class DecodingState:
    """What has been decoded for one prompt, and what may follow."""

    def __init__(self, vocabulary: Vocabulary, constraints: GenerationConstraints, inside: bool):
        self.vocabulary = vocabulary
        self.constraints = constraints
        self.inside = inside
        self.segments: list[Segment] = []
        self.current: list[int] = []  # ids of the piece being written
        self.count = 0  # of codes of the image being written
        self.cell = 0  # that its next code lies on, if the vocabulary has skips
        self.skipped = False  # whether the id taken last is a skip
        self.latest = -1  # the id taken last
        self.left = constraints.max_new_tokens
        self.images_left = constraints.max_images - inside
        self.shown = False  # whether anything visible is there, text or an image
        self.ended = False
        if self.images_left < 0:
            raise ValueError("the prompt ends with [IMG], but the constraints allow no image")
        if inside and self.left < constraints.min_codes + 1:
            raise ValueError(
                f"an image of {constraints.min_codes} codes does not fit max_new_tokens {self.left}"
            )
        cells = vocabulary.cells
        if cells is not None and constraints.max_images and constraints.min_codes > cells:
            raise ValueError(f"min_codes {constraints.min_codes} asked for; an image has {cells} cells")

    @property
    def state(self) -> State | None:
        """What may come next; None: nothing, the line is done."""
        constraints = self.constraints
        if self.inside:
            full = self.count == constraints.max_codes or self.cell == self.vocabulary.cells
            if full or self.left == 1:
                return State.END
            short = self.count < constraints.min_codes or self.skipped
            return State.CODE if short else State.CODE_OR_END
        speak = constraints.text and self.left > 0 and not self.ended
        begin = self.images_left > 0 and self.left >= constraints.min_codes + 2 and not self.ended
        if speak and not self.shown:
            if begin:
                return State.FIRST_OR_BEGIN
            return State.FIRST if self.left > 1 else State.VISIBLE
        if speak:
            return State.TEXT_OR_BEGIN if begin else State.TEXT
        return State.BEGIN if begin else None

    @property
    def longest_skip(self) -> int:
        """How many cells the next id may pass over at most; 0: it may be no skip."""
        cells, constraints = self.vocabulary.cells, self.constraints
        if cells is None or not self.inside or self.skipped or self.count == constraints.max_codes:
            return 0
        to_come = max(1, constraints.min_codes - self.count)  # codes behind the skip, at least
        return max(0, cells - self.cell - to_come) if self.left >= to_come + 2 else 0

    @property
    def progress(self) -> float:
        """Fraction done of the image being written: cells passed, or codes where there are no cells."""
        if self.vocabulary.skips:
            return self.cell / (self.vocabulary.skips + 1)
        return self.count / self.constraints.max_codes

    @property
    def partial_image(self) -> ImageSegment | None:
        """The codes so far of the image being written; None before its first one, and outside images."""
        ids = self.current[:-1] if self.skipped else self.current
        if not self.inside or not ids:
            return None
        whole = np.array([self.vocabulary.begin, *ids, self.vocabulary.end])
        codes, cells = picture_of(whole, self.vocabulary)
        return ImageSegment(tuple(codes.tolist()), None if cells is None else tuple(cells.tolist()))

    def take(self, token: int) -> None:
        """Append one legal id."""
        self.latest = token
        self.left -= 1
        if self.inside and token != self.vocabulary.end:
            self._take_inside(token)
        elif token == self.vocabulary.begin:
            self._finish_text()
            self.inside, self.images_left, self.count, self.cell = True, self.images_left - 1, 0, 0
        elif token == self.vocabulary.end:
            image = self.partial_image
            assert image is not None
            self.segments.append(image)
            self.inside, self.shown, self.current = False, True, []
        elif token == self.vocabulary.eos:
            self.ended = True
        else:
            self.current.append(token)
            self.shown = self.shown or token not in self.vocabulary.blank
        if self.state is None:
            self._finish_text()

    def _take_inside(self, token: int) -> None:
        self.current.append(token)
        skips = self.vocabulary.ranges["skips"]
        self.skipped = self.vocabulary.cells is not None and skips.first <= token < skips.first + skips.count
        if self.skipped:
            self.cell += token - skips.first + skips.least
        else:
            self.count, self.cell = self.count + 1, self.cell + 1

    def _finish_text(self) -> None:
        if self.current:
            self.segments.append(TextSegment(tuple(self.current)))
            self.current = []
