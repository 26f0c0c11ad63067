import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pictish.lm.sampling import (
    NEVER,
    Sampling,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
)

LOGITS = 3 * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x: keep_top_k(x, 7), TopKLogitsWarper(7)),
        (lambda x: keep_top_k(x, 1), TopKLogitsWarper(1)),
        (lambda x: keep_top_k(x, 99), TopKLogitsWarper(99)),
        (lambda x: keep_top_p(x, 0.8), TopPLogitsWarper(0.8)),
        (lambda x: keep_top_p(x, 0.05), TopPLogitsWarper(0.05)),
        (lambda x: keep_min_p(x, 0.1), MinPLogitsWarper(0.1)),
        (lambda x: keep_min_p(x, 1.0), MinPLogitsWarper(1.0)),
    ],
)
def test_filters_are_those_of_transformers(ours, theirs):
    logits = LOGITS.masked_fill(torch.arange(50) % 5 == 0, NEVER)  # as legality leaves them
    expected = theirs(torch.zeros(20, 1), logits.clone())
    assert torch.equal(ours(logits), expected)
    assert (ours(logits).isfinite().sum(dim=1) >= 1).all()


def test_filters_apply_in_the_order_of_transformers():
    sampling = Sampling(temperature=1.7, top_k=20, top_p=0.9, min_p=0.05)
    expected = LOGITS
    filters = TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)
    for warper in (TemperatureLogitsWarper(1.7), *filters):
        expected = warper(torch.zeros(20, 1), expected)
    allowed = expected.isfinite()
    counts = torch.zeros(20, 50)
    generators = seeded(*range(20))
    for _ in range(400):
        counts[torch.arange(20), draw(LOGITS, sampling, generators)] += 1
    assert (counts[~allowed] == 0).all()
    assert 20 < allowed.sum() < 300
    assert (counts / 400 - expected.softmax(dim=1)).abs().max() < 0.12  # 4.8 standard deviations


def test_a_row_does_not_depend_on_its_batch():
    together = draw(LOGITS[:4], Sampling(), seeded(1, 2, 3, 4))
    alone = [draw(LOGITS[[row]], Sampling(), seeded(row + 1)).item() for row in range(4)]
    assert together.tolist() == alone
    same = draw(LOGITS[:1].repeat(200, 1), Sampling(), seeded(*range(200)))
    assert len(same.unique()) > 3


@pytest.mark.parametrize("temperature", [0, 1e-40, 1e-3])
def test_greedy_and_nearly_so(temperature):
    assert torch.equal(draw(LOGITS, Sampling(temperature), seeded(*range(20))), LOGITS.argmax(dim=1))


def test_what_is_impossible_is_never_drawn():
    logits = torch.full((1, 1000), NEVER)
    logits[0, [3, 999]] = torch.tensor([0.0, -300.0])
    generators = seeded(5)
    assert {draw(logits, Sampling(), generators).item() for _ in range(200)} == {3}
    assert draw(logits, Sampling(10.0, top_k=2), seeded(5)).item() in (3, 999)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 asked for; 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_k": 0}, "top_k 0 asked for; 1 or more"),
        ({"top_p": 0.0}, "top_p 0.0 asked for; above 0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"min_p": -1}, "min_p -1 asked for; 0 to 1"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**setting)
