"""LaVIT's draws against torch's own, and the ids that its models may emit between codes."""

import pytest
import torch
import torch.nn.functional as F

from pictish.lm.grammar import ImageSegment, State, one_image
from pictish.lm.sampling import Sampling, keep_top_k, keep_top_p
from pictish.lm.vocabulary import Vocabulary
from pictish.pipelines.lavit_replay import gumbel, gumbel_mask, ignoring, together

VOCABULARY = Vocabulary(6, 5, eos=2, unspoken=(0, 1), blank=frozenset({0, 1, 2, 5}))
LOGITS = 3 * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_draw_takes_the_numbers_of_a_hard_gumbel_softmax():
    logits = torch.randn(4, 30, generator=seeded(2))
    both = torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
    torch.manual_seed(77)
    expected = F.gumbel_softmax(both, 1.0, hard=True)[..., 0] > 0
    torch.manual_seed(77)
    assert torch.equal(gumbel(torch.default_generator)(logits), expected)
    assert 0 < expected.float().mean() < 1
    own = gumbel([seeded(7) for _ in range(4)])(logits)
    assert torch.equal(own[2:3], gumbel_mask(logits[2:3], seeded(7)))


def test_a_draw_that_keeps_nothing_keeps_the_best():
    logits = torch.full((1, 5), -60.0)
    logits[0, 3] = -50
    assert gumbel(seeded(0))(logits).tolist() == [[False, False, False, True, False]]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=9), Sampling(top_p=0.6)])
def test_one_generator_for_a_batch_draws_as_torch_does(sampling):
    filtered = LOGITS / sampling.temperature
    filtered = keep_top_k(filtered, sampling.top_k) if sampling.top_k else filtered
    filtered = keep_top_p(filtered, sampling.top_p) if sampling.top_p else filtered
    expected = torch.multinomial(filtered.softmax(dim=1), 1, generator=seeded(3))[:, 0]
    assert torch.equal(together(sampling, seeded(3), 20)(LOGITS, range(20)), expected)
    some = [2, 7, 19]  # the others are done, and draw as if they were not
    assert torch.equal(together(sampling, seeded(3), 20)(LOGITS[some], some), expected[some])


def test_ignored_ids_count_but_are_no_codes_and_one_code_there_is_at_least():
    ignored_ids = (0, 2, VOCABULARY.begin)
    constraints = ignoring(one_image(3), ignored_ids)
    legal = constraints.legal(VOCABULARY, VOCABULARY.size)
    decoding = constraints.decoding(VOCABULARY, True)

    def allowed() -> list[int]:
        return legal.of([decoding])[0].nonzero()[:, 0].tolist()

    for ignored in (VOCABULARY.begin, 2):  # neither a second image nor the end of a text
        assert allowed() == [0, 2, 6, 8, 9, 10, 11, 12], "no end without a code"
        decoding.take(ignored)
    assert allowed() == [8, 9, 10, 11, 12], "there is room for one code"
    decoding.take(9)
    assert decoding.state == State.END
    decoding.take(VOCABULARY.end)
    assert (decoding.state, decoding.segments) == (None, [ImageSegment((1,))])


def test_behind_a_code_ignored_ids_and_the_end_may_come():
    constraints = ignoring(one_image(3), [0])
    legal = constraints.legal(VOCABULARY, VOCABULARY.size)
    decodings = [constraints.decoding(VOCABULARY, True) for _ in range(2)]
    decodings[0].take(9)
    assert legal.of(decodings)[:, [0, VOCABULARY.end]].tolist() == [[True, True], [True, False]]
    decodings[0].take(0)
    assert legal.of(decodings[:1])[0, VOCABULARY.end]


def test_ignored_ids_are_for_models_without_skips():
    placed = Vocabulary(6, 5, skips=7, eos=2, unspoken=(0, 1), blank=frozenset({0, 1, 2, 5}))
    with pytest.raises(ValueError, match="ignored_ids are for models without skips"):
        ignoring(one_image(8), [0]).decoding(placed, inside=True)
