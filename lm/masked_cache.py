"""Caches for masked models: what of a forward is computed again, and what is kept from an earlier one.

A causal model's keys and values stay true; here every id that is written changes all of them a little. So
each cache trades exactness for speed, and each has a setting at which it computes everything:

    prefix    keys and values of what stands before the block are kept        refresh 1
    dual      and of what stands behind it                                    refresh 1
    interval  prompt and answer are computed at intervals; between them only      prompt and answer 1
              the share of the answer whose values changed most

prefix and dual are Fast-dLLM's (arXiv 2505.22618), with a whole forward at the beginning of each block and
after `refresh` others. interval is dLLM-Cache's (arXiv 2506.06295), whose kept parts are the outputs of each
attention and MLP block beside keys and values.

Legend: R rows, N columns, M columns computed, H heads, E width of a head, D width, V ids.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from pictish.lm.autoregressive import cache_argument
from pictish.lm.config import MaskedCache
from pictish.lm.model import head_at

LAYERED = ("llama", "mistral", "qwen2", "qwen3")  # whose layers `Interval` knows how to compute in parts


@dataclass(frozen=True, eq=False)
class Rows:
    """What a forward reads: all columns of some of a batch's rows."""

    numbers: Tensor  # (R,) which rows of the batch
    embedded: Tensor  # (R, N, D)
    positions: Tensor  # (R, N)
    seen: Tensor  # (R, 1, N, N) as attention_mask gives it
    answer: int  # the column that the answer begins at, the [IMG] before it included where it sees it


class Whole:
    """No cache: every forward computes everything."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def logits(self, rows: Rows, block: slice, step: int) -> Tensor:
        """Logits (R, W, V) of the columns `block`; `step` is 0 where a block begins."""
        return _forward(self.model, rows, slice(0, rows.embedded.shape[1]), block)


class Slots:
    """prefix and dual: keys and values of columns that a forward leaves out are those of an earlier one."""

    def __init__(self, model: PreTrainedModel, batch: int, config: MaskedCache) -> None:
        self.model, self.batch, self.config = model, batch, config
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # (batch, H, N, E) each
        self.rows = torch.zeros(0, dtype=torch.long)
        self.columns: slice | None = None  # of this forward; None: all

    def logits(self, rows: Rows, block: slice, step: int) -> Tensor:
        """As `Whole.logits`."""
        refresh = self.config.refresh
        whole = step == 0 or (refresh is not None and step % refresh == 0)
        last = rows.embedded.shape[1] if self.config.kind == "prefix" else block.stop
        first = rows.answer if block.start == rows.answer + 1 else block.start
        computed = slice(0, rows.embedded.shape[1]) if whole else slice(first, last)
        self.rows, self.columns = rows.numbers, None if whole else computed
        return _forward(self.model, rows, computed, block, self)

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all columns, with new ones (R, H, M, E): what attention asks of a cache."""
        new = keys, values
        if self.columns is None:
            shape = self.batch, *keys.shape[1:]
            if layer not in self.layers or self.layers[layer][0].shape != shape:
                self.layers[layer] = keys.new_zeros(shape), values.new_zeros((self.batch, *values.shape[1:]))
            for store, one in zip(self.layers[layer], new, strict=True):
                store[self.rows] = one
            return keys, values
        kept = [store[self.rows] for store in self.layers[layer]]  # copies
        for whole, one in zip(kept, new, strict=True):
            whole[:, :, self.columns] = one
        return kept[0], kept[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """transformers asks it of every cache; positions are given, so nothing follows from it."""
        return 0


@dataclass(eq=False)
class _Layer:
    """What is kept of one layer, for all rows of the batch."""

    keys: Tensor  # (batch, N, H, E), rotated
    values: Tensor  # (batch, N, H, E)
    attended: Tensor  # (batch, N, D)
    passed: Tensor  # (batch, N, D) of the MLP


class Interval:
    """interval: columns that are not computed keep what each block last added to the residual stream."""

    def __init__(self, model: PreTrainedModel, batch: int, config: MaskedCache) -> None:
        """ValueError for an architecture whose layers are not known."""
        kind = model.config.get_text_config().model_type
        if kind not in LAYERED:
            raise ValueError(f"cache interval: not known how {kind} is built; prefix, dual or none would fit")
        self.model, self.batch, self.config = model, batch, config
        self.body: Any = model.get_decoder()
        self.layers: list[_Layer] = []
        self.done = torch.zeros(batch, dtype=torch.long)  # forwards of each row

    def logits(self, rows: Rows, block: slice, step: int) -> Tensor:
        """As `Whole.logits`; each row counts its own forwards, whatever the others of its batch do."""
        if not self.layers or self.layers[0].keys.shape[1] != rows.embedded.shape[1]:
            self.layers, self.done = [], torch.zeros_like(self.done)
        done = self.done[rows.numbers.cpu()]
        prompt, answer = done % self.config.prompt_interval == 0, done % self.config.answer_interval == 0
        self.done[rows.numbers.cpu()] += 1
        found: list[tuple[Tensor, Tensor]] = []
        for kind in dict.fromkeys(zip(prompt.tolist(), answer.tolist(), strict=True)):
            mine = ((prompt == kind[0]) & (answer == kind[1])).nonzero()[:, 0].to(rows.embedded.device)
            part = Rows(
                rows.numbers[mine], rows.embedded[mine], rows.positions[mine], rows.seen[mine], rows.answer
            )
            found.append((mine, self._pass(part, *kind)[:, block]))
        order = torch.cat([mine for mine, _ in found]).argsort()
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        return head(torch.cat([hidden for _, hidden in found])[order])

    def _pass(self, rows: Rows, prompt: bool, answer: bool) -> Tensor:
        """Hidden states (R, N, D); whether prompt and answer are computed whole."""
        x, length = rows.embedded, rows.embedded.shape[1]
        cos, sin = self.body.rotary_emb(x, position_ids=rows.positions)
        every = torch.arange(length, device=x.device)
        fixed = torch.cat([every[: rows.answer if prompt else 0], every[rows.answer if answer else length :]])
        count = int((length - rows.answer) * self.config.ratio)  # of the answer, where it is not whole
        for number, layer in enumerate(self.body.layers):
            normed = layer.input_layernorm(x)
            if number == len(self.layers):
                self.layers.append(self._empty(layer, normed))
            kept = self.layers[number]
            columns = fixed.expand(len(x), -1)  # (R, M)
            if not answer and count:
                heads = kept.values.shape[2:]
                values = layer.self_attn.v_proj(normed[:, rows.answer :]).unflatten(-1, heads)
                before = kept.values[rows.numbers, rows.answer :]
                alike = F.cosine_similarity(values.flatten(2), before.flatten(2), dim=-1)
                changed = alike.sort(dim=1, stable=True).indices[:, :count]
                kept.values[rows.numbers[:, None], every[rows.answer :]] = values
                columns = torch.cat([columns, rows.answer + changed], dim=1)
            here = rows.numbers[:, None], columns
            if columns.shape[1]:
                kept.attended[here] = self._attended(
                    layer.self_attn, _at(normed, columns), kept, rows, columns, cos, sin
                )
            x = x + kept.attended[rows.numbers]
            if columns.shape[1]:
                kept.passed[here] = layer.mlp(layer.post_attention_layernorm(_at(x, columns)))
            x = x + kept.passed[rows.numbers]
        return self.body.norm(x)

    def _attended(
        self,
        attention: Any,
        normed: Tensor,
        kept: _Layer,
        rows: Rows,
        columns: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        """What attention adds (R, M, D) at `columns` (R, M), whose keys and values are kept."""
        width = attention.head_dim
        query, key, value = (
            getattr(attention, f"{name}_proj")(normed).unflatten(-1, (-1, width)) for name in "qkv"
        )
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = apply_rotary_pos_emb(query, key, _at(cos, columns), _at(sin, columns), unsqueeze_dim=2)
        here = rows.numbers[:, None], columns
        kept.keys[here], kept.values[here] = key, value
        groups = query.shape[2] // key.shape[2]
        keys, values = (
            stored[rows.numbers].repeat_interleave(groups, dim=2).transpose(1, 2)
            for stored in (kept.keys, kept.values)
        )
        seen = rows.seen.gather(2, columns[:, None, :, None].expand(-1, 1, -1, rows.seen.shape[3]))
        found = F.scaled_dot_product_attention(
            query.transpose(1, 2), keys, values, attn_mask=seen, scale=attention.scaling
        )
        return attention.o_proj(found.transpose(1, 2).flatten(2))

    def _empty(self, layer: Any, normed: Tensor) -> _Layer:
        """Room for what is kept of a layer."""
        states = normed.new_zeros(self.batch, *normed.shape[1:])
        heads = layer.self_attn.k_proj.out_features // layer.self_attn.head_dim
        keys = normed.new_zeros(self.batch, normed.shape[1], heads, layer.self_attn.head_dim)
        return _Layer(keys, keys.clone(), states, states.clone())


def network_of(model: PreTrainedModel, batch: int, config: MaskedCache) -> Whole | Slots | Interval:
    """The network for a batch of `batch` rows; ValueError as `Interval`."""
    match config.kind:
        case "none":
            return Whole(model)
        case "prefix" | "dual":
            return Slots(model, batch, config)
        case "interval":
            return Interval(model, batch, config)


def _forward(
    model: PreTrainedModel, rows: Rows, computed: slice, block: slice, cache: Slots | None = None
) -> Tensor:
    """Logits (R, W, V) of the columns `block` from a forward of those `computed`."""
    sdpa = model.config._attn_implementation == "sdpa"
    seen = rows.seen[:, :, computed]
    if not sdpa:  # only sdpa reads a bool mask as one
        dtype = rows.embedded.dtype
        seen = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    wanted = torch.zeros(rows.embedded.shape[:2], dtype=torch.bool, device=rows.embedded.device)
    wanted[:, block] = True
    extra: dict[str, Any] = {} if cache is None else {cache_argument(model): cache}
    with head_at(model, wanted[:, computed]):
        logits = model(
            inputs_embeds=rows.embedded[:, computed],
            attention_mask=seen,
            position_ids=rows.positions[:, computed],
            use_cache=cache is not None,
            **extra,
        ).logits
    if logits.ndim == 3:  # a model whose head is no module of its own
        logits = logits[wanted[:, computed]]
    return logits.unflatten(0, (len(rows.embedded), -1))


def _at(tensor: Tensor, columns: Tensor) -> Tensor:
    """The rows' own `columns` (R, M) of (R, N, ...)."""
    if len(tensor) == 1:
        tensor = tensor.expand(len(columns), *tensor.shape[1:])
    return tensor[torch.arange(len(columns), device=columns.device)[:, None], columns]
