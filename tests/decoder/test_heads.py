"""LaVIT's heads: the pool is CLIP's, no codes are stored rows or zeros, padding of codes says nothing."""

import pytest
import torch
import torch.nn.functional as F

from pictish.configs import parse
from pictish.decoder.condition import Conditioning
from pictish.decoder.config import DiffusionConfig, HeadsConfig
from pictish.decoder.heads import AttentionPool, HeadCondition
from pictish.decoder.noise import Noise
from pictish.decoder.schedulers import begin, build_scheduler

CELLS, FEATURES, CODE = 9, 8, 4
NOISE = {"kind": "diffusion", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def condition(**changes) -> HeadCondition:
    torch.manual_seed(0)
    settings = parse(HeadsConfig, {"kind": "heads", "width": 6, "heads": 2, **changes}, "test")
    made = HeadCondition(settings, FEATURES, CODE, CELLS)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made.eval()


def conditioning(count: int = 3) -> Conditioning:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(count, CELLS, CODE, generator=generator)
    real = torch.arange(CELLS) < torch.tensor([[4], [9], [1]])[:count]
    return Conditioning(torch.randn(count, CELLS, FEATURES, generator=generator), codes, real, None)


def test_the_pool_is_multi_head_attention_of_the_mean_row():
    pool = AttentionPool(CELLS, FEATURES, 5, 2)
    rows = torch.randn(3, CELLS, FEATURES)
    x = torch.cat([rows.mean(dim=1, keepdim=True), rows], dim=1) + pool.positions
    x = x.transpose(0, 1)  # (N, B, F) as PyTorch's function wants it
    expected, _ = F.multi_head_attention_forward(
        query=x[:1],
        key=x,
        value=x,
        embed_dim_to_check=FEATURES,
        num_heads=2,
        q_proj_weight=pool.query.weight,
        k_proj_weight=pool.key.weight,
        v_proj_weight=pool.value.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.query.bias, pool.key.bias, pool.value.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.out.weight,
        out_proj_bias=pool.out.bias,
        use_separate_proj_weight=True,
        need_weights=False,
    )
    assert torch.allclose(pool(rows), expected[0], atol=1e-6)


@torch.no_grad()
def test_dropped_codes_are_zeros_that_are_all_seen():
    heads = condition(pooled=5)
    found = heads(conditioning(), torch.tensor([False, True, False]))
    assert found.maps is None
    assert found.real is None
    assert not found.sequence[1].any()
    assert not found.pooled[1].any()
    assert torch.allclose(found.sequence[2], heads.to_sequence(conditioning().features[2]))
    assert found.pooled[0].any()


@torch.no_grad()
def test_dropped_codes_are_stored_rows_and_nothing_else_is_seen():
    heads = condition(null=4)
    found = heads(conditioning(), torch.tensor([True, False, False]))
    assert torch.equal(found.sequence[0, :4], heads.null)
    assert not found.sequence[0, 4:].any()
    assert found.real.sum(dim=1).tolist() == [4, 9, 9]


@torch.no_grad()
def test_a_trunk_of_its_own_reads_codes_alone_and_no_padding():
    heads = condition(trunk={"layers": 1, "mlp_ratio": 2.0})
    keep = torch.zeros(3, dtype=torch.bool)
    first = heads(conditioning()._replace(features=None), keep).sequence
    padded = conditioning().codes.clone()
    padded[~conditioning().real] = 7.0
    assert torch.allclose(
        heads(conditioning()._replace(features=None, codes=padded), keep).sequence, first, atol=1e-5
    )
    other = conditioning().codes.clone()
    other[0, 0] += 1
    assert not torch.allclose(
        heads(conditioning()._replace(codes=other), keep).sequence[0], first[0], atol=1e-3
    )


@pytest.mark.parametrize(("steps", "times"), [(4, [751, 501, 251, 1]), (2, [501, 1])])
def test_leading_times_are_those_of_stable_diffusion(steps, times):
    raw = {
        "side": 16,
        "denoiser": {"kind": "unet"},
        "condition": {"kind": "heads", "width": 6, "heads": 2},
        "noise": {**NOISE, "spacing": "leading"},
        "sampling": {"scheduler": "DDIMScheduler", "steps": steps, "guidance": 5},
    }
    config = parse(DiffusionConfig, raw, "test")
    assert isinstance(config.condition, HeadsConfig)
    scheduler = build_scheduler("DDIMScheduler", Noise(config.noise).config)
    found, start = begin(scheduler, steps, 1.0, None, torch.ones(1, 1, 2, 2))
    assert found.tolist() == times
    assert torch.equal(start, torch.ones(1, 1, 2, 2))
