"""LaVIT's masks that leak, its codebook: against their definitions written out."""

import pytest
import torch

from pictish.tokenizer.attention import LEAK, leaky_attention
from pictish.tokenizer.merger import Merger, kept_rows
from pictish.tokenizer.quantizers import build_quantizer
from pictish.tokenizer.quantizers.config import EuclideanConfig

B, H, N, D = 2, 3, 10, 4


def by_definition(q, k, v, allowed):
    """weight_j = (e_j + eps/N) / (sum e + eps) with e_j = exp(s_j - M) where allowed, M over all keys."""
    logits = q @ k.transpose(-1, -2) * D**-0.5
    e = (logits - logits.amax(-1, keepdim=True)).exp() * allowed
    return (e + LEAK / N) / (e.sum(-1, keepdim=True) + LEAK) @ v


def random_heads(scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(B, H, N, D, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("scale", [1.0, 8.0])  # sharp logits leak most
def test_leaky_attention_is_its_definition(scale):
    q, k, v = random_heads(scale)
    allowed = torch.rand(B, 1, N, N, generator=torch.Generator().manual_seed(1)) < 0.3
    allowed[1, 0, 4] = False
    found = leaky_attention(q, k, v, v.mean(2, keepdim=True), allowed)
    assert torch.allclose(found, by_definition(q, k, v, allowed), atol=1e-5)
    assert torch.allclose(found[1, :, 4], v[1].mean(dim=1), atol=1e-5), "nothing allowed: the values' mean"


def test_values_are_needed_of_the_keys_alone_that_may_be_seen():
    q, k, v = random_heads(4.0)
    allowed = torch.arange(N)[None, None, None] < torch.tensor([4, 0])[:, None, None, None]
    centre = v.mean(2, keepdim=True)
    found = leaky_attention(q, k, v[:, :, :6], centre, allowed[..., :6])
    assert torch.allclose(found, by_definition(q, k, v, allowed), atol=1e-5)


def test_leaky_attention_is_softmax_with_one_more_key():
    q, k, v = random_heads(3.0)
    allowed = torch.ones(N, N, dtype=torch.bool).tril()[None, None].expand(B, 1, N, N)
    logits = q @ k.transpose(-1, -2) * D**-0.5
    virtual = logits.amax(-1, keepdim=True) + torch.tensor(LEAK).log()
    weights = torch.cat([logits.masked_fill(~allowed, -torch.inf), virtual], dim=-1).softmax(-1)
    expected = weights @ torch.cat([v, v.mean(2, keepdim=True)], dim=2)
    assert torch.allclose(leaky_attention(q, k, v, v.mean(2, keepdim=True), allowed), expected, atol=1e-5)


@pytest.fixture
def merger() -> Merger:
    torch.manual_seed(0)
    merger = Merger(24, 2, 2.0, 2, "exact").eval().requires_grad_(False)
    for block in merger.blocks:
        torch.nn.init.normal_(block.attend_dropped.out.weight, std=0.5)
        torch.nn.init.normal_(block.attend_kept.query.weight, std=1.5)
    return merger


def test_kept_rows_alone_in_the_last_block_give_the_same(merger):
    hidden, keep = torch.randn(3, N, 24), torch.rand(3, N) < 0.5
    keep[0], keep[1] = True, torch.arange(N) == 3
    rows, real = kept_rows(keep, N)
    few, _ = kept_rows(keep[1:2], 1)
    whole = merger(hidden, keep)
    found = merger.gathered(hidden, keep, rows, real)
    assert torch.allclose(found, torch.take_along_dim(whole, rows[..., None], 1), atol=1e-5)
    alone = merger.gathered(hidden[1:2], keep[1:2], few, torch.ones(1, 1, dtype=torch.bool))
    assert torch.allclose(alone[0, 0], whole[1, 3], atol=1e-5)


def test_later_rows_leak_into_earlier_ones_in_exact_mode_alone(merger):
    hidden, keep = torch.randn(1, N, 24), torch.arange(N)[None] % 2 == 0
    changed = hidden.clone()
    changed[0, 8] += 3.0  # kept, and later than row 0
    assert not torch.equal(merger(hidden, keep)[0, 0], merger(changed, keep)[0, 0])
    merger.mode = "gather"
    assert torch.allclose(merger(hidden, keep)[0, 0], merger(changed, keep)[0, 0], atol=1e-6)


def test_the_nearest_raw_row_by_distance_from_a_unit_vector():
    quantizer = build_quantizer(EuclideanConfig(codes=3, dim=2))
    quantizer.codebook.copy_(torch.tensor([[0.75, 0.125], [5.0, 0.0], [0.0, 0.5]]))
    found = quantizer(torch.tensor([[7.0, 0.0], [0.0, 0.1]]))  # by cosine the first would be code 1
    assert found.ids.tolist() == [0, 2]
    assert found.vectors.tolist() == quantizer.decode(found.ids).tolist() == [[0.75, 0.125], [0.0, 0.5]]
    assert found.loss == 0
