"""Continuous batching: sequences join and leave between two steps, and each is written as if it were alone.

    batch = ContinuousBatch(model, vocabulary)
    member = batch.add(prompt, ...)          its prompt is read at once
    while batch.members:
        for member in batch.members:
            batch.choose(member)             takes its next id, and leaves when that was the last
        batch.read()                         one forward for each group of rows

`generate` pads the prompts of a batch to one length, so that what a prompt gets depends on the others by the
rounding of tensors of other shapes. Here the shapes that a sequence is computed at depend on it alone:
prompts are read one by one, and steps are read in groups of `rows` rows, filled up with idle ones, whose
caches have the smallest power of two that the whole sequence fits in. So a seed gives the same ids in any
company.

Legend: R rows of a group, C tokens that its caches hold, L tokens of a prompt, D width, H heads, V ids.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from pictish.lm.autoregressive import (
    ActiveSequence,
    Branch,
    Guidance,
    Prompt,
    branches,
    cache_argument,
    check_context,
    embed_ids,
    guide,
    strides_of,
)
from pictish.lm.grammar import DecodingState, GenerationConstraints, Legal
from pictish.lm.sampling import NEVER, Sampling, draw
from pictish.lm.vocabulary import Vocabulary
from pictish.training.isolation import inference

ROWS = 16
SHORTEST = 64  # tokens that a cache holds, at least
REMEMBERED = 4  # readings of prompts, for those without conditions are all alike; tables of legal ids


@dataclass(eq=False)
class Member:
    """A sequence of the batch; `decoding` has what was written so far."""

    decoding: DecodingState
    prompt_tokens: int
    active: ActiveSequence
    sampling: Sampling
    guidance: Guidance
    group: "_Group"
    rows: list[int]  # of the group, one for each branch
    logits: Tensor  # (branches, V) of what comes next


class ContinuousBatch:
    """The sequences that one causal LM in eval mode writes at the same time."""

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary, *, rows: int = ROWS) -> None:
        self.model, self.vocabulary, self.rows = model, vocabulary, rows
        self.members: list[Member] = []
        self._groups: list[_Group] = []
        self._legal: dict[GenerationConstraints, Legal] = {}
        self._read: deque[tuple[Tensor, DynamicCache, Tensor]] = deque(maxlen=REMEMBERED)
        self._codes: Tensor | None = None

    @inference
    def add(
        self,
        prompt: Prompt,
        constraints: GenerationConstraints,
        *,
        sampling: Sampling,
        guidance: Guidance,
        generator: torch.Generator,
    ) -> Member:
        """Read a prompt, whose sequence takes part from the next `choose` on.

        ValueError beyond the model's context, for a prompt that the constraints contradict, and for a model
        whose layers do not keep one key and value for each token.
        """
        decoding = constraints.decoding(self.vocabulary, prompt.inside)
        read_as, weights = branches(prompt, guidance)
        if len(read_as) > self.rows:
            raise ValueError(f"a prompt of {len(read_as)} branches; {self.rows} rows are in a group")
        check_context(self.model, read_as, constraints.reach(self.vocabulary))
        needed = max(len(branch.embedded) for branch in read_as) + constraints.max_new_tokens
        length = max(SHORTEST, 1 << (needed - 1).bit_length())
        read = [self._prefilled(branch) for branch in read_as]
        group = self._group(length, len(read_as), read[0][0])
        rows = [group.enter(cache, branch) for branch, (cache, _) in zip(read_as, read, strict=True)]
        member = Member(
            decoding,
            len(prompt.full),
            ActiveSequence(decoding, read_as, weights, generator),
            sampling,
            guidance,
            group,
            rows,
            torch.cat([logits for _, logits in read]),
        )
        self.members.append(member)
        return member

    @inference
    def choose(self, member: Member) -> bool:
        """Take the next id of a member; True, and it has left, when that was its last.

        ValueError for logits that are no numbers; the member then still takes part.
        """
        logits = member.logits
        if self._codes is None:
            self._codes = self.vocabulary.is_code(torch.arange(logits.shape[1], device=logits.device))
        constraints = member.decoding.constraints
        if constraints not in self._legal:
            if len(self._legal) == REMEMBERED:
                self._legal.clear()
            self._legal[constraints] = constraints.legal(self.vocabulary, logits.shape[1], logits.device)
        scores = guide([member.active], logits, member.guidance, self._codes)
        scores = scores.masked_fill(~self._legal[constraints].of([member.decoding]), NEVER)
        if not scores.amax().isfinite():
            raise ValueError(
                "the model's logits are not finite numbers, or guidance made them so; "
                "smaller guidance scales may fit"
            )
        member.decoding.take(int(draw(scores, member.sampling, [member.active.generator])))
        if member.decoding.state is None:
            self.remove(member)
            return True
        return False

    @inference
    def read(self) -> None:
        """Read the id that each member has taken."""
        for group in self._groups:
            mine = [member for member in self.members if member.group is group]
            if not mine:
                continue
            logits = group.read({row: member.decoding.latest for member in mine for row in member.rows})
            for member in mine:
                member.logits = logits[member.rows]

    @inference
    def remove(self, member: Member) -> None:
        """Take a member out; caches that nobody uses any more are given back, but for those of one group."""
        self.members.remove(member)
        for row in member.rows:
            member.group.leave(row)
        idle = [group for group in self._groups if len(group.free) == self.rows]
        for group in idle if len(idle) < len(self._groups) else idle[1:]:
            self._groups.remove(group)

    def _prefilled(self, branch: Branch) -> tuple[DynamicCache, Tensor]:
        """Cache and logits (1, V) behind a prompt, which is read at a shape of its own."""
        for known, cache, logits in self._read:
            if known.shape == branch.embedded.shape and torch.equal(known, branch.embedded):
                return cache, logits
        cache = DynamicCache(config=self.model.config)
        positions = branch.positions[None]
        logits = _forward(self.model, branch.embedded[None], torch.ones_like(positions), positions, cache)
        self._read.append((branch.embedded, cache, logits))
        return cache, logits

    def _group(self, length: int, rows: int, like: DynamicCache) -> "_Group":
        """A group with caches of `length` tokens and at least `rows` free rows."""
        for group in self._groups:
            if group.length == length and len(group.free) >= rows:
                return group
        self._groups.append(_Group(self.model, self.vocabulary, self.rows, length, like))
        return self._groups[-1]


class _Group:
    """R rows that are read together, each at its own place."""

    def __init__(
        self, model: PreTrainedModel, vocabulary: Vocabulary, rows: int, length: int, like: DynamicCache
    ) -> None:
        self.model, self.vocabulary, self.length = model, vocabulary, length
        self.free = list(range(rows))
        device = _tensors(like.layers[0])[0].device
        self.places = torch.zeros(rows, dtype=torch.long, device=device)  # of the id that is read next
        self.positions = torch.zeros_like(self.places)  # of the last id
        self.seen = torch.zeros(rows, length, dtype=torch.bool, device=device)
        self.seen[:, 0] = True  # an idle row attends to something, too
        self.index = torch.arange(rows, device=device)
        self.layers = [_RowLayer(layer, length, self.index, self.places) for layer in like.layers]
        self.cache = Cache(layers=list(self.layers))

    def enter(self, cache: DynamicCache, prompt: Branch) -> int:
        """The row that goes on behind a prompt."""
        row, length = self.free.pop(0), len(prompt.positions)
        for own, read in zip(self.layers, cache.layers, strict=True):
            own.write(row, *_tensors(read))
        self.places[row] = length
        self.positions[row] = prompt.positions[-1]
        self.seen[row] = torch.arange(self.length, device=self.seen.device) < length
        return row

    def leave(self, row: int) -> None:
        """Make a row idle."""
        self.places[row] = 0
        self.positions[row] = 0
        self.seen[row] = False
        self.seen[row, 0] = True
        self.free.append(row)
        self.free.sort()

    def read(self, ids: dict[int, int]) -> Tensor:
        """Logits (R, V) behind the next id of each row that goes on; those of idle rows mean nothing."""
        rows = torch.tensor(sorted(ids), device=self.places.device)
        self.seen[rows, self.places[rows]] = True
        given = [ids.get(row, 0) for row in range(len(self.places))]
        mask: Tensor = self.seen[:, None, None]  # (R, 1, 1, C)
        embedded = embed_ids(self.model, given)[:, None]
        if self.model.config._attn_implementation != "sdpa":  # others add the mask to the scores
            lowest = torch.finfo(embedded.dtype).min
            mask = torch.zeros_like(mask, dtype=embedded.dtype).masked_fill(~mask, lowest)
        self.positions[rows] += strides_of([ids[int(row)] for row in rows], self.vocabulary, rows.device)
        logits = _forward(self.model, embedded, mask, self.positions[:, None], self.cache)
        self.places[rows] += 1
        return logits


def _tensors(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values (1, H, L, width) of a layer that has read a prompt."""
    return layer.keys, layer.values


class _RowLayer(CacheLayerMixin):
    """Keys and values (R, H, C, width) of one layer, where each row is written at its own place."""

    keys: Tensor
    values: Tensor

    def __init__(self, like: Any, length: int, index: Tensor, places: Tensor) -> None:
        super().__init__()
        window = getattr(like, "sliding_window", None)
        if like.keys is None or like.keys.ndim != 4 or (window is not None and window < length):
            raise ValueError(
                f"a model with layers of the kind {type(like).__name__} and sequences of {length} tokens; "
                "layers that keep a key and a value for each token fit"
            )
        rows = len(index)
        self.keys = like.keys.new_zeros(rows, like.keys.shape[1], length, like.keys.shape[3])
        self.values = like.values.new_zeros(rows, like.values.shape[1], length, like.values.shape[3])
        self.index, self.places = index, places
        self.is_initialized = True

    def write(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Put (1, H, L, width) of a prompt into a row, and nothing behind it."""
        for own, new in ((self.keys, keys), (self.values, values)):
            own[row] = 0
            own[row, :, : new.shape[2]] = new[0]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add one token a row (R, H, 1, width), and give all."""
        self.keys[self.index, :, self.places] = key_states[:, :, 0]
        self.values[self.index, :, self.places] = value_states[:, :, 0]
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """It is made whole."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset; the mask is given."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Rows have lengths of their own; positions are given."""
        return 0

    def get_max_length(self) -> int:
        """C."""
        return int(self.keys.shape[2])


def _forward(
    model: PreTrainedModel, embedded: Tensor, mask: Tensor, positions: Tensor, cache: Cache
) -> Tensor:
    """Logits (R, V) behind the last of (R, L, D)."""
    output = model(
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **{cache_argument(model): cache},
    )
    logits = output.logits[:, -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
