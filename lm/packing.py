"""Documents of different length share rows; attention never crosses from one to the next.

Inside a document tokens see by blocks: a token sees its own block and all earlier ones. Of blocks of one
token each that is causal attention, of a single block it is bidirectional, and what lies between is
attention that is causal by turns of a dialogue, from prompt to answer, or by blocks of a text.

A step's rows are filled from the stream of documents alone: what does not fit any more starts the next step,
so a position in the stream is all there is to remember.

Legend: B rows, L tokens a row, M embedded features, F feature channels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
    targets: Tensor  # the id that is to be predicted at this place, else IGNORED; `pack` gives each its own
    documents: Tensor  # 1, 2, ... in each row; 0 is padding
    positions: Tensor  # from 0 in each document
    tasks: Tensor  # index into TASKS of each token's document
    turns: Tensor  # of a dialogue, from 0 in each document
    structure: Tensor  # whether the token is a mark between contents, such as [IMG]
    features: Tensor | None
    places: Tensor
    pictures: tuple[Placed, ...] = ()
    blocks: Tensor | None = None  # rising in each document; None: a block a token, so causal attention
    noisy: Tensor | None = None  # whether the token is of a corrupted copy that only its own block sees
    weights: Tensor | None = None  # what the loss of each target counts; None: 1
    counts: Tensor | None = None  # what each token adds to the number losses are divided by; None: 1 a target
    reference: Tensor | None = None  # log-probability of each target by the reference of preference.py

    def to(self, device: torch.device) -> "Packed":
        """The same on another device."""
        pictures = tuple(one._replace(views=one.views.to(device)) for one in self.pictures)
        moved = self._map(lambda tensor: tensor.to(device), self.features, self.places.to(device))
        return replace(moved, pictures=pictures)

    def _map(self, change: Callable[[Tensor], Tensor], features: Tensor | None, places: Tensor) -> "Packed":
        """The same with every tensor (B, L) changed, features in other places."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.by_token.items()}
        if features is not None:
            features = features.to(places.device)
        return replace(self, **changed, features=features, places=places)

    @property
    def by_token(self) -> dict[str, Tensor]:
        """All that has a value for each token, (B, L), by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        others = ("features", "places", "pictures")
        return {n: tensor for n, tensor in found.items() if n not in others and tensor is not None}

    @property
    def numbers(self) -> Tensor:
        """What each token adds to the number that losses are divided by, (B, L)."""
        return (self.targets != IGNORED).float() if self.counts is None else self.counts

    def split(self, rows: int) -> "list[Packed]":
        """Parts of at most `rows` rows."""
        parts = []
        for start in range(0, len(self.ids), rows):
            inside = (self.places[0] >= start) & (self.places[0] < start + rows)
            places = self.places[:, inside].clone()
            places[0] -= start
            features = self.features[inside] if self.features is not None and inside.any() else None
            part = self._map(partial(_rows, start=start, count=rows), features, places)
            pictures = [one for one in self.pictures if start <= one.row < start + rows]
            parts.append(replace(part, pictures=tuple(p._replace(row=p.row - start) for p in pictures)))
        return parts

    @classmethod
    def join(cls, parts: "Sequence[Packed]") -> "Packed":
        """The rows of all parts, one after the other, padded to the longest."""
        length = max(part.ids.shape[1] for part in parts)
        padded = [part.lengthened(length).by_token for part in parts]
        by_token = {name: torch.cat([one[name] for one in padded]) for name in padded[0]}
        features = [part.features for part in parts if part.features is not None]
        pictures: list[Placed] = []
        places, rows = [], 0
        for part in parts:
            places.append(part.places + torch.tensor([[rows], [0]]))
            pictures += [one._replace(row=one.row + rows) for one in part.pictures]
            rows += len(part.ids)
        together = torch.cat(features) if features else None
        return cls(**by_token, features=together, places=torch.cat(places, dim=1), pictures=tuple(pictures))

    def lengthened(self, length: int) -> "Packed":
        """The same rows with padding behind them, `length` in all."""
        more = length - self.ids.shape[1]
        if more == 0:
            return self
        longer = self._map(lambda tensor: F.pad(tensor, (0, more)), self.features, self.places)
        return replace(longer, targets=F.pad(self.targets, (0, more), value=IGNORED))

    @property
    def learned(self) -> float:
        """What losses are divided by: the number of targets, or of samples, as the objective counts."""
        return float(self.numbers.sum())

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
    """Lay documents out in rows of `length` tokens; the target of each learned token is its own id."""
    shape = (len(rows), length)
    ids, documents, positions, tasks, turns = (np.zeros(shape, dtype=np.int64) for _ in range(5))
    structure = np.zeros(shape, dtype=bool)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    features, places = [], []
    pictures: list[Placed] = []
    for row, members in enumerate(rows):
        start = number = 0
        for document in members:
            end = start + len(document)
            number += 1
            ids[row, start:end] = document.ids
            targets[row, start:end] = np.where(document.learn, document.ids, IGNORED)
            documents[row, start:end] = number
            if document.turns is not None:
                turns[row, start:end] = document.turns
            if document.structure is not None:
                structure[row, start:end] = document.structure
            positions[row, start:end] = document.positions
            if document.rejected is not None:  # two sequences, and so two numbers
                number += 1
                documents[row, start + document.rejected : end] = number
            tasks[row, start:end] = TASKS.index(document.task)
            if document.features is not None:
                features.append(document.features)
                places.append(np.stack([np.full(len(document.places), row), document.places + start]))
            pictures += [
                Placed(row, start + place, torch.from_numpy(seen.views), seen.layout)
                for place, seen in document.pictures
            ]
            start = end
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(documents),
        torch.from_numpy(positions),
        torch.from_numpy(tasks),
        torch.from_numpy(turns),
        torch.from_numpy(structure),
        features=torch.from_numpy(np.concatenate(features)) if features else None,
        places=torch.from_numpy(np.concatenate(places, axis=1) if places else np.zeros((2, 0), np.int64)),
        pictures=tuple(pictures),
    )


def _rows(tensor: Tensor, start: int, count: int) -> Tensor:
    return tensor[start : start + count]


def attention_mask(
    documents: Tensor,
    dtype: torch.dtype = torch.bool,
    blocks: Tensor | None = None,
    noisy: Tensor | None = None,
) -> Tensor:
    """Which tokens each token may see, (B, 1, L, L): of its own document, those of its block and earlier.

    Without `blocks` (B, L) these are itself and the earlier ones. A `noisy` (B, L) token sees the others of
    its block that are noisy, and of earlier blocks those that are not; others see nothing noisy (block
    diffusion: arXiv 2503.09573).

    bool says it by True; a floating `dtype` by 0 to be added to its scores, and the lowest number where not.
    transformers is given this mask and not position ids alone: those isolate documents only without a cache
    and without a mask. Padding sees itself, since a row that sees nothing gives NaN.
    """
    length = documents.shape[1]
    same = documents[:, :, None] == documents[:, None, :]  # (B, L, L)
    if blocks is None:
        earlier = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    elif noisy is None:
        earlier = blocks[:, None, :] <= blocks[:, :, None]
    else:
        own = (blocks[:, None, :] == blocks[:, :, None]) & (noisy[:, None, :] == noisy[:, :, None])
        earlier = own | (blocks[:, None, :] < blocks[:, :, None]) & ~noisy[:, None, :]
    seen = (same & earlier)[:, None]
    if dtype == torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
