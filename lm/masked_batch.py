"""The rows that a masked model reads: prompts and spans, padding, who sees whom, and guidance.

Each prompt has a row for each branch that guidance needs, all in one forward. Rows are padded on the left, so
that all spans stand in the same columns; each counts its positions from its own first token.

Legend: P prompts, R rows, L tokens of a prompt, A places of a span, W places of a block, D width, V ids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from pictish.lm.autoregressive import UNGUIDED, Guidance, Prompt, branches, mixed
from pictish.lm.config import MaskedCache, MaskedForm
from pictish.lm.masked_cache import Rows, network_of
from pictish.lm.masked_sampling import MaskState
from pictish.lm.packing import attention_mask

UNCACHED = MaskedCache()


class MaskedBatch:
    """Gives `fill` the logits of spans behind `prompts`; one `Denoise` for them all."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        mask: int,
        form: MaskedForm,
        *,
        room: int,
        block_length: int | None = None,
        guidance: Guidance = UNGUIDED,
        guided: Tensor | None = None,
        cache: MaskedCache = UNCACHED,
    ) -> None:
        """`room` is the longest that spans get; spans see in blocks of `block_length`, None: they are one.

        `guided` (V,) marks the ids whose standard deviation `guidance` rescales. ValueError for a prompt that
        leaves no such room in the model's context, and as `network_of`.
        """
        each = [branches(prompt, guidance) for prompt in prompts]
        # a masked model writes every cell of an image, so positions are places
        rows = [branch.embedded for own, _ in each for branch in own]  # R
        lengths = [len(row) for row in rows]
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and max(lengths) + room > limit:
            raise ValueError(
                f"a prompt of {max(lengths)} tokens with {room} masked ones asked for; "
                f"{limit} in all fit the model's context"
            )
        self.model, self.mask, self.block_length = model, mask, block_length
        self.guidance, self.guided = guidance, guided
        self.owners = [number for number, (own, _) in enumerate(each) for _ in own]  # prompt of each row
        self.weights = [weights for _, weights in each]
        self.network = network_of(model, len(rows), cache)
        self.embedded = pad_sequence(rows, batch_first=True, padding_side="left")  # (R, L, D)
        device = self.embedded.device
        self.before = max(lengths)
        columns = torch.arange(self.before, device=device)
        self.padding = self.before - torch.tensor(lengths, device=device)  # (R,)
        self.real = (columns >= self.padding[:, None]).long()  # (R, L)
        self.blocks = torch.zeros_like(self.real)
        for number, (row, owner) in enumerate(zip(rows, self.owners, strict=True)):
            prompt = prompts[owner]
            if prompt.blocks is not None and row is prompt.full and form.attention != "full":
                self.blocks[number, self.before - len(row) :] = prompt.blocks
        self.span = self.blocks[:, -1] + int(
            form.attention == "prefix"
        )  # (R,) the block that a span begins with
        opened = form.attention == "prefix" and all(prompt.inside for prompt in prompts)
        if opened:  # [IMG] is of its image's block
            self.blocks[:, -1] = self.span
        self.answer = self.before - int(opened)
        self.masks_at_first: Tensor | None = None

    def __call__(self, state: MaskState, rows: Tensor, block: slice, step: int) -> Tensor:
        """Guided logits (R', W, V) of places `block` of the state's rows `rows` (R',)."""
        if self.masks_at_first is None:
            self.masks_at_first = state.masked.sum(dim=1).clamp_min(1)
        done = 1 - state.masked.sum(dim=1) / self.masks_at_first
        asked = rows.tolist()
        numbers = [n for owner in asked for n, other in enumerate(self.owners) if other == owner]
        logits = self.network.logits(self._rows(state, numbers), self._columns(block), step)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        found, start = [], 0
        for owner in asked:
            weights = self.weights[owner]
            own = logits[start : start + len(weights)]  # (branches, W, V)
            found.append(mixed(own, weights, self.guidance, float(done[owner]), self.guided))
            start += len(weights)
        return torch.stack(found)

    def _columns(self, block: slice) -> slice:
        return slice(self.before + block.start, self.before + block.stop)

    def _rows(self, state: MaskState, numbers: list[int]) -> Rows:
        """The rows with these numbers, prompts and spans."""
        index = torch.tensor(numbers, device=self.embedded.device)
        owners = torch.tensor(self.owners, device=index.device)[index]
        ids = state.ids.masked_fill(state.masked, self.mask)[owners]
        length = ids.shape[1]
        embedding = self.model.get_input_embeddings()
        embedded = torch.cat([self.embedded[index], embedding(ids)], dim=1)
        places = torch.arange(self.before + length, device=index.device)
        real = torch.cat([self.real[index], torch.ones_like(ids)], dim=1)
        own = self.span[index, None].expand(-1, length)
        if self.block_length is not None:
            own = own + torch.arange(length, device=index.device) // self.block_length
        return Rows(
            index,
            embedded,
            (places - self.padding[index, None]).clamp_min(0),
            attention_mask(real, blocks=torch.cat([self.blocks[index], own], dim=1)),
            self.answer,
        )
