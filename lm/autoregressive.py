"""Generation: prompts in, segments of text and images out, one id per step for all prompts together.

    batch = RoutedBatch(models, branches)    one row per branch: the prompt, and those that guidance needs
    while any prompt is unfinished:
        logits = guide(batch.logits)         one row per prompt
        ids = draw(logits where legal)
        batch.keep(...), batch.step(ids)     without finished prompts; a prompt's branches read the same id

Guidance has two scales, as in InstructPix2Pix (arXiv 2211.09800), and concerns the ids of images only. What
a prompt gets depends on the others of its batch by no more than the rounding of tensors of other shape.

Legend: P prompts that go on, R rows, L tokens of a prompt, D width, V ids.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from pictish.lm.grammar import DecodingState, GenerationConstraints, Segment
from pictish.lm.sampling import NEVER, Sampling, draw
from pictish.lm.vocabulary import Vocabulary
from pictish.training.isolation import inference

CacheKind = Literal["dynamic", "static"]
Progress = Callable[[int, int], None]  # ids done, of how many at most
DrawIds = Callable[[Tensor, Sequence[int]], Tensor]  # logits (P, V) of the prompts of these numbers: ids (P,)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What to continue, and the same with conditions dropped, embedded; ValueError if one is empty.

    A prompt without `nothing` is not guided; `image_only` is for prompts with images, and `full` itself
    where there is no text.
    """

    full: Tensor  # (L, D)
    image_only: Tensor | None = None  # (L', D) without the text
    nothing: Tensor | None = None  # (L'', D) without any condition
    inside: bool = False  # all end with [IMG], so that the first id to come is an image's
    model: PreTrainedModel | None = None  # the adapted model that continues it; None: the one that is called
    positions: Mapping[str, Tensor] = field(default_factory=dict)  # (L,) by name; others: 0, 1, 2, ...
    blocks: Tensor | None = None  # (L,) of `full`, rising from 0, for masked models; None: all one

    def __post_init__(self) -> None:
        if self.image_only is not None and self.nothing is None:
            raise ValueError("a prompt has image_only but not nothing; guidance compares the two")
        for name in ("full", "image_only", "nothing"):
            branch = getattr(self, name)
            if branch is not None and (branch.ndim != 2 or len(branch) == 0):
                raise ValueError(f"{name} of a prompt is {tuple(branch.shape)}; (1 or more, D) would fit")

    def branch(self, name: str) -> "Branch":
        """`full`, `image_only` or `nothing` with its positions."""
        embedded: Tensor = getattr(self, name)
        positions = self.positions.get(name)
        return Branch.of(embedded) if positions is None else Branch(embedded, positions)


class Branch(NamedTuple):
    """What one row of a batch reads first."""

    embedded: Tensor  # (L, D)
    positions: Tensor  # (L,) rising

    @classmethod
    def of(cls, embedded: Tensor) -> "Branch":
        """Tokens (L, D) at positions 0, 1, 2, ..."""
        return cls(embedded, torch.arange(len(embedded), device=embedded.device))


@dataclass(frozen=True)
class Guidance:
    """How far to go from what is likely anyway to what the prompt asks for; ValueError if not finite.

    1 is unguided. `image_scale` counts for prompts with `image_only`. With a `ramp` the scales rise from 1 to
    their values over an image, by a cosine of this power (as in RAR and reAR): little guidance while the
    first codes are drawn, which decide on the composition. `rescale` mixes in logits that have the standard
    deviation of unguided ones: 0 none of them, 1 nothing else (arXiv 2305.08891).
    """

    text_scale: float = 1.0
    image_scale: float = 1.0
    ramp: float = 0.0
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)  # of what is done of an image; outside nothing is guided

    def __post_init__(self) -> None:
        if not (math.isfinite(self.text_scale) and math.isfinite(self.image_scale)):
            raise ValueError(f"guidance scales {self.text_scale} and {self.image_scale}: numbers would fit")
        if not (0 <= self.ramp < math.inf and 0 <= self.rescale <= 1):
            raise ValueError(
                f"guidance ramp {self.ramp} and rescale {self.rescale}: 0 or more, and 0 to 1 would fit"
            )
        if not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(f"guidance interval {self.interval}: two rising numbers from 0 to 1 would fit")

    def strength(self, done: float) -> float:
        """What share of the way from 1 to the scales is gone when so much of an image is `done`, 0 to 1."""
        if not self.interval[0] <= done <= self.interval[1]:
            return 0.0
        if not self.ramp:
            return 1.0
        return (1 - math.cos(math.pi * min(done, 1.0) ** self.ramp)) / 2


UNGUIDED = Guidance()
PLAIN = Sampling()


def embed_ids(model: PreTrainedModel, ids: Sequence[int] | Tensor) -> Tensor:
    """The model's embeddings (L, D) of ids (L,): what a prompt is made of, beside continuous features."""
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        device = embedding.get_parameter("weight").device
        return embedding(torch.as_tensor(ids, dtype=torch.long, device=device))


@inference
def generate(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    constraints: GenerationConstraints,
    *,
    sampling: Sampling = PLAIN,
    guidance: Guidance = UNGUIDED,
    generators: Sequence[torch.Generator] | None = None,
    draw_ids: DrawIds | None = None,
    cache: CacheKind = "dynamic",
    progress: Progress | None = None,
) -> list[list[Segment]]:
    """What a transformers causal LM in eval mode says to each prompt: its pieces in order, one at least.

    Prompts that name a `model` of their own, such as one of lm/adaptors.py, are continued by that, in the
    same loop: each gets what it would get alone. All models have the vocabulary.
    Unless greedy, a prompt draws from its own of `generators`; for several images of one, repeat it. A
    `draw_ids` draws instead. `progress` is called after each id; what it raises ends the call.
    ValueError for a prompt longer than the model's context, for one that the request contradicts, and for a
    model that gives no numbers.
    """
    if generators is None and (draw_ids or sampling.temperature == 0):
        generators = [torch.Generator() for _ in prompts]  # greedy asks nothing of them
    if generators is None or len(generators) != len(prompts):
        found = 0 if generators is None else len(generators)
        raise ValueError(f"{len(prompts)} prompts to sample for need as many generators, not {found}")
    if not prompts:
        return []
    decodings = [constraints.decoding(vocabulary, prompt.inside) for prompt in prompts]
    sequences = [
        ActiveSequence(decoding, *branches(prompt, guidance), generator)
        for decoding, prompt, generator in zip(decodings, prompts, generators, strict=True)
    ]
    models = [prompt.model or model for prompt, s in zip(prompts, sequences, strict=True) for _ in s.branches]
    rows = [branch for s in sequences for branch in s.branches]
    reach = constraints.reach(vocabulary)
    batch = RoutedBatch(models, rows, constraints.max_new_tokens, cache, vocabulary, reach)
    legal = constraints.legal(vocabulary, batch.logits.shape[1], batch.logits.device)
    codes = vocabulary.is_code(torch.arange(batch.logits.shape[1], device=batch.logits.device))
    for step in itertools.count(1):
        logits = guide(sequences, batch.logits, guidance, codes)
        logits = logits.masked_fill(~legal.of([s.decoding for s in sequences]), NEVER)
        if not logits.amax(dim=1).isfinite().all():
            if batch.logits.amax(dim=1).isfinite().all():
                raise ValueError(
                    f"guidance scales {guidance.text_scale} and {guidance.image_scale}: guided logits are "
                    "not finite numbers; smaller scales would fit"
                )
            raise ValueError("the model's logits are not finite numbers; its weights may have diverged")
        if draw_ids is None:
            ids = draw(logits, sampling, [s.generator for s in sequences]).tolist()
        else:
            ids = draw_ids(logits, [decodings.index(s.decoding) for s in sequences]).tolist()
        for sequence, token in zip(sequences, ids, strict=True):
            sequence.decoding.take(token)
        if progress is not None:
            progress(step, constraints.max_new_tokens)
        # finished prompts leave with all their rows; the others read on
        owners = [s.decoding for s in sequences for _ in s.branches]  # R
        kept = [row for row, decoding in enumerate(owners) if decoding.state is not None]
        sequences = [s for s in sequences if s.decoding.state is not None]
        if not sequences:
            return [decoding.segments for decoding in decodings]
        if len(kept) < len(owners):
            batch.keep(kept)
        batch.step([owners[row].latest for row in kept])
    raise AssertionError("every prompt ends")


@dataclass(frozen=True, eq=False)
class ActiveSequence:
    """An unfinished sequence: its decoding state, its guidance branches, and their weights."""

    decoding: DecodingState
    branches: list[Branch]
    weights: list[float]
    generator: torch.Generator


def branches(prompt: Prompt, guidance: Guidance) -> tuple[list[Branch], list[float]]:
    """The branches of a prompt that guidance needs, full first, and what their logits weigh.

    The scales' differences, nothing + image (image_only - nothing) + text (full - image_only), are sorted by
    branch; one that weighs nothing is not computed.
    """
    text, image = guidance.text_scale, guidance.image_scale
    full = prompt.branch("full")
    if prompt.nothing is None:
        return [full], [1.0]
    if prompt.image_only is prompt.full:
        text, others = image, [("nothing", 1 - image)]
    elif prompt.image_only is None:
        others = [("nothing", 1 - text)]
    else:
        others = [("image_only", image - text), ("nothing", 1 - image)]
    others = [(name, weight) for name, weight in others if weight != 0]
    return [full, *(prompt.branch(name) for name, _ in others)], [text, *(weight for _, weight in others)]


def guide(sequences: Sequence[ActiveSequence], logits: Tensor, guidance: Guidance, codes: Tensor) -> Tensor:
    """Logits (P, V) from those of all branches (R, V): text as the full prompt says, codes by weight.

    LaVIT weighs log-softmax values; they differ by a constant a row, which no draw notices. Standard
    deviations are those of the ids that `codes` (V,) marks.
    """
    chosen = []
    for sequence, own in zip(sequences, logits.split([len(s.branches) for s in sequences]), strict=True):
        decoding = sequence.decoding
        guided = decoding.inside and len(own) > 1
        chosen.append(mixed(own, sequence.weights, guidance, decoding.progress, codes) if guided else own[0])
    return torch.stack(chosen)


def mixed(
    own: Tensor, weights: Sequence[float], guidance: Guidance, done: float, codes: Tensor | None
) -> Tensor:
    """Logits (..., V) of one prompt from those of its branches (branches, ..., V), when so much is `done`.

    Standard deviations are those of the ids that `codes` (V,) marks, None: of all.
    """
    if len(own) == 1:
        return own[0]
    factors = own.new_tensor(weights)
    if guidance.ramp or guidance.interval != (0, 1):
        # full + strength (guided - full); scales rise alike, so weights do
        strength = guidance.strength(done)
        factors = strength * factors
        factors[0] += 1 - strength
    found = (own * factors.reshape(-1, *[1] * (own.ndim - 1))).sum(dim=0)
    if guidance.rescale:
        marked = slice(None) if codes is None else codes
        ratio = own[0][..., marked].std(dim=-1) / found[..., marked].std(dim=-1).clamp_min(1e-6)
        found = found * (guidance.rescale * ratio + 1 - guidance.rescale)[..., None]
    return found


class DecodeBatch:
    """The batch that the model decodes: cache, mask and positions, and `logits` (R, V) of what comes next.

    All that is particular to transformers' caches is here. Rows are padded on the left, so that they grow
    together; each counts its positions from its own first token, by the strides of `vocabulary` if it is
    given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Branch],
        room: int,
        cache: CacheKind,
        vocabulary: Vocabulary | None = None,
        reach: int | None = None,
    ):
        """Read `prompts`, leaving `room` for ids to come, which take `reach` positions, None: as many.

        ValueError beyond the model's context.
        """
        lengths = [len(prompt.embedded) for prompt in prompts]
        check_context(model, prompts, room if reach is None else reach)
        self.model, self.vocabulary = model, vocabulary
        self.cache_argument = cache_argument(model)
        self.seen = 0
        rows, numbers = [prompt.embedded for prompt in prompts], [prompt.positions for prompt in prompts]
        embedded = pad_sequence(rows, batch_first=True, padding_side="left")  # (R, L, D)
        positions = pad_sequence(numbers, batch_first=True, padding_side="left")  # (R, L)
        self.position = positions[:, -1]  # (R,) of the last id
        padding = max(lengths) - torch.tensor(lengths, device=embedded.device)
        places = torch.arange(max(lengths) + room, device=embedded.device) - padding[:, None]
        self.mask = (places >= 0).long()  # (R, L + room)
        match cache:
            case "dynamic":
                self.cache: Cache = DynamicCache(config=model.config)
            case "static":
                self.cache = StaticCache(config=model.config, max_cache_len=self.mask.shape[1])
            case _:
                raise ValueError(f"cache {cache!r} asked for; dynamic or static would fit")
        self.logits = self._read(embedded, positions)

    def step(self, ids: Sequence[int]) -> None:
        """Read one more id a row."""
        self.position = self.position + strides_of(ids, self.vocabulary, self.position.device)
        self.logits = self._read(embed_ids(self.model, ids)[:, None], self.position[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order; one may come several times."""
        index = torch.tensor(rows, device=self.mask.device)
        # made for beam search, and selects in layers of every kind; batch_select_indices only in dynamic ones
        self.cache.reorder_cache(index)  # type: ignore[arg-type]  # any integer tensor does
        self.mask, self.position, self.logits = self.mask[index], self.position[index], self.logits[index]

    def _read(self, embedded: Tensor, positions: Tensor) -> Tensor:
        self.seen += embedded.shape[1]
        output = self.model(
            inputs_embeds=embedded,
            attention_mask=self.mask[:, : self.seen],  # a static cache fills it up to its own length
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_argument: self.cache},
        )
        logits = output.logits[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class RoutedBatch:
    """Rows of several models: a `DecodeBatch` of each, and the logits of all rows in their order."""

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        prompts: Sequence[Branch],
        room: int,
        cache: CacheKind,
        vocabulary: Vocabulary | None = None,
        reach: int | None = None,
    ) -> None:
        """Read each of `prompts` by its model; ValueError as `DecodeBatch`, and for unlike heads."""
        distinct = list({id(model): model for model in models}.values())
        self.owners = [next(n for n, one in enumerate(distinct) if one is model) for model in models]  # (R,)
        self.batches = [
            DecodeBatch(
                model,
                [p for p, owner in zip(prompts, self.owners, strict=True) if owner == n],
                room,
                cache,
                vocabulary,
                reach,
            )
            for n, model in enumerate(distinct)
        ]
        widths = {batch.logits.shape[1] for batch in self.batches}
        if len(widths) > 1:
            raise ValueError(f"models with {sorted(widths)} logits in one batch; as many of each would fit")

    @property
    def logits(self) -> Tensor:
        """Of what comes next, (R, V)."""
        if len(self.batches) == 1:
            return self.batches[0].logits
        rows = [iter(batch.logits) for batch in self.batches]
        return torch.stack([next(rows[owner]) for owner in self.owners])

    def step(self, ids: Sequence[int]) -> None:
        """Read one more id a row."""
        for number, batch in enumerate(self.batches):
            batch.step([token for token, owner in zip(ids, self.owners, strict=True) if owner == number])

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        within = [self.owners[:row].count(owner) for row, owner in enumerate(self.owners)]
        kept = [[within[row] for row in rows if self.owners[row] == n] for n in range(len(self.batches))]
        for batch, own in zip(self.batches, kept, strict=True):
            if own and own != list(range(len(batch.logits))):
                batch.keep(own)
        used = [n for n, own in enumerate(kept) if own]
        self.owners = [used.index(self.owners[row]) for row in rows]
        self.batches = [self.batches[n] for n in used]


def check_context(model: PreTrainedModel, prompts: Sequence[Branch], reach: int) -> None:
    """ValueError where the model's context does not hold a prompt and `reach` positions behind it."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return
    longest = max(int(prompt.positions[-1]) for prompt in prompts) + 1
    if longest + reach > limit:
        raise ValueError(
            f"a prompt of {longest} tokens with {reach} new ones asked for; "
            f"{limit} in all fit the model's context"
        )


def strides_of(ids: Sequence[int], vocabulary: Vocabulary | None, device: torch.device) -> Tensor:
    """How far the positions of `ids` (R,) are from those before them, (R,)."""
    read = torch.tensor(ids, dtype=torch.long, device=device)
    return torch.ones_like(read) if vocabulary is None else vocabulary.strides(read)


def cache_argument(model: PreTrainedModel) -> str:
    """What the model's forward calls its cache: `cache` from transformers 5.24 on."""
    whole: Any = model
    plain = whole.get_base_model() if hasattr(whole, "get_base_model") else whole  # peft hides the signature
    return "cache" if "cache" in inspect.signature(plain.forward).parameters else "past_key_values"
