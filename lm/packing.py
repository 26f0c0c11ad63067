"""Documents of different length share rows; attention never crosses from one to the next.

A step's rows are filled from the stream of documents alone: what does not fit any more starts the next step,
so a position in the stream is all there is to remember.

Legend: B rows, L tokens a row, M embedded features, F feature channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pictish.lm.sequence import TASKS, Document
from pictish.lm.vision.model import Placed

Position = Mapping[str, Any]  # of a stream, plain JSON

IGNORED = -100  # a target that counts for nothing: torch's and transformers' number for it


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of documents, all (B, L) but `features` (M, F), whose rows and columns are `places` (2, M).

    `pictures` are those that a vision tower looks at.
    """

    ids: Tensor
    targets: Tensor  # the next id where that is learned, else IGNORED
    documents: Tensor  # 1, 2, ... in each row; 0 is padding
    positions: Tensor  # from 0 in each document
    tasks: Tensor  # index into TASKS of each token's document
    features: Tensor | None
    places: Tensor
    pictures: tuple[Placed, ...] = ()

    def to(self, device: torch.device) -> "Packed":
        """The same on another device."""
        ids, targets, documents, positions, tasks = (tensor.to(device) for tensor in self._by_token)
        features = None if self.features is None else self.features.to(device)
        return Packed(ids, targets, documents, positions, tasks, features, self.places.to(device))

    @property
    def _by_token(self) -> tuple[Tensor, ...]:
        """All that has a value for each token, (B, L)."""
        return self.ids, self.targets, self.documents, self.positions, self.tasks

    def split(self, rows: int) -> "list[Packed]":
        """Parts of at most `rows` rows."""
        parts = []
        for start in range(0, len(self.ids), rows):
            inside = (self.places[0] >= start) & (self.places[0] < start + rows)
            places = self.places[:, inside].clone()
            places[0] -= start
            ids, targets, documents, positions, tasks = (t[start : start + rows] for t in self._by_token)
            features = self.features[inside] if self.features is not None and inside.any() else None
            parts.append(Packed(ids, targets, documents, positions, tasks, features, places))
        return parts

    @classmethod
    def join(cls, parts: "Sequence[Packed]") -> "Packed":
        """The rows of all parts, one after the other."""
        by_token = [torch.cat(tensors) for tensors in zip(*(part._by_token for part in parts), strict=True)]
        features = [part.features for part in parts if part.features is not None]
        places, rows = [], 0
        for part in parts:
            places.append(part.places + torch.tensor([[rows], [0]]))
            rows += len(part.ids)
        ids, targets, documents, positions, tasks = by_token
        together = torch.cat(features) if features else None
        return cls(ids, targets, documents, positions, tasks, together, torch.cat(places, dim=1))

    @property
    def learned(self) -> int:
        """How many targets count."""
        return int((self.targets != IGNORED).sum())

    @property
    def padding(self) -> float:
        """Share of the row places that hold no token."""
        return float((self.documents == 0).float().mean())


def fill(lengths: Sequence[int], rows: int, length: int) -> list[list[int]]:
    """Which of the next documents go into each row: first fit, until one fits nowhere.

    Returns indices by row; together they are 0, 1, ... without a gap. A document longer than a row is the
    caller's mistake.
    """
    room = [length] * rows
    placed: list[list[int]] = [[] for _ in range(rows)]
    for index, wanted in enumerate(lengths):
        assert wanted <= length, f"a document of {wanted} tokens for rows of {length}"
        row = next((row for row in range(rows) if room[row] >= wanted), None)
        if row is None:
            break
        placed[row].append(index)
        room[row] -= wanted
    return placed


def batches(
    documents: Iterator[tuple[Document, Position]], rows: int, length: int
) -> Iterator[tuple[list[list[Document]], Position]]:
    """Steps of `rows` rows from a stream, each with the position behind its last document.

    What was read and does not fit waits for the next step; the last step may be short.
    """
    waiting: list[tuple[Document, Position]] = []
    while True:
        held = sum(len(document) for document, _ in waiting)
        while held <= rows * length and (item := next(documents, None)) is not None:
            waiting.append(item)
            held += len(item[0])
        if not waiting:
            return
        placed = fill([len(document) for document, _ in waiting], rows, length)
        taken = sum(map(len, placed))
        yield [[waiting[index][0] for index in row] for row in placed], waiting[taken - 1][1]
        del waiting[:taken]


def pack(rows: Sequence[Sequence[Document]], length: int) -> Packed:
    """Lay documents out in rows of `length` tokens."""
    shape = (len(rows), length)
    ids, documents, positions, tasks = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    targets = np.full(shape, IGNORED, dtype=np.int64)
    features, places = [], []
    for row, members in enumerate(rows):
        start = 0
        for number, document in enumerate(members, 1):
            end = start + len(document)
            ids[row, start:end] = document.ids
            following = np.where(document.learn[1:], document.ids[1:], IGNORED)
            targets[row, start : end - 1] = following
            documents[row, start:end] = number
            positions[row, start:end] = np.arange(len(document))
            tasks[row, start:end] = TASKS.index(document.task)
            if document.features is not None:
                features.append(document.features)
                places.append(np.stack([np.full(len(document.places), row), document.places + start]))
            start = end
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(documents),
        torch.from_numpy(positions),
        torch.from_numpy(tasks),
        features=torch.from_numpy(np.concatenate(features)) if features else None,
        places=torch.from_numpy(np.concatenate(places, axis=1) if places else np.zeros((2, 0), np.int64)),
    )


def attention_mask(documents: Tensor, dtype: torch.dtype = torch.bool, causal: bool = True) -> Tensor:
    """Which tokens each token may see, (B, 1, L, L): of its own document, earlier ones only if `causal`.

    bool says it by True; a floating `dtype` by 0 to be added to its scores, and the lowest number where not.
    transformers is given this mask and not position ids alone: those isolate documents only without a cache
    and without a mask. Padding sees itself, since a row that sees nothing gives NaN.
    """
    length = documents.shape[1]
    same = documents[:, :, None] == documents[:, None, :]  # (B, L, L)
    earlier = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    seen = (same & earlier if causal else same)[:, None]
    if dtype == torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
