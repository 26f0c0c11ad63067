"""Beam search against ids that transformers 4.33.2's BeamSearchScorer gave for the same random chances."""

import pytest
import torch

from pictish.lm import beams
from pictish.lm.config import BeamSearchConfig
from pictish.lm.vocabulary import Vocabulary

TEXT, IDS, FIRST = 8, 12, [3, 4, 5]
RECORDED = [
    ({"num_beams": 2, "min_new_tokens": 2}, [[5, 6, 0, 0, 7, 6], [6, 1, 0, 0, 7, 6], [6, 1, 0, 0, 7, 6]]),
    ({"num_beams": 3, "min_new_tokens": 0, "length_penalty": 0.0, "early_stopping": True}, [[], [7, 0], [0]]),
    (
        {"num_beams": 3, "min_new_tokens": 1, "length_penalty": 2.0},
        [[4, 0, 6, 4, 5, 6], [5, 3, 6, 4, 5, 6], [1, 0, 6, 4, 5, 6]],
    ),
    (
        {"num_beams": 2, "min_new_tokens": 0, "length_penalty": -1.0, "early_stopping": True},
        [[], [1, 3, 4], []],
    ),
]


class TableBatch:
    """Stands for `DecodeBatch`: what comes next depends on the step and the id before it alone."""

    def __init__(self, table, prompts, room, cache, vocabulary):
        self.table, self.at = table, 0
        self.logits = table[0, [int(prompt) for prompt in prompts]]

    def keep(self, rows):
        self.logits = self.logits[rows]

    def step(self, ids):
        self.at += 1
        self.logits = self.table[self.at, ids]


def chances(seed: int) -> torch.Tensor:
    """Logits by step and id before, (7, V, V); ends are common."""
    table = 2 * torch.randn(7, IDS, IDS, generator=torch.Generator().manual_seed(seed))
    table[:, :, 2] += 1
    return table


def write(table: torch.Tensor, settings: dict) -> list[list[int]]:
    prompts = [torch.tensor(one) for one in FIRST]
    return beams.beam_search(
        table, Vocabulary(TEXT, 2, eos=2), prompts, BeamSearchConfig(max_new_tokens=6, **settings)
    )


@pytest.fixture(autouse=True)
def _table_rows(monkeypatch):
    monkeypatch.setattr(beams, "DecodeBatch", TableBatch)


@pytest.mark.parametrize("case", range(len(RECORDED)))
def test_the_texts_are_those_of_transformers(case):
    settings, texts = RECORDED[case]
    assert write(chances(case), settings) == texts


@pytest.mark.parametrize("seed", range(5))
def test_one_beam_takes_the_likeliest_id_each_time(seed):
    table = chances(seed)
    expected = []
    for token in FIRST:
        ids: list[int] = []
        for step in range(6):
            logits = table[step, token][:TEXT].clone()
            logits[2] = float("-inf") if step < 2 else logits[2]
            token = int(logits.argmax())
            if token == 2:
                break
            ids.append(token)
        expected.append(ids)
    assert write(table, {"num_beams": 1, "min_new_tokens": 2}) == expected


def test_what_it_cannot_do_it_says():
    with pytest.raises(ValueError, match="no end-of-text token"):
        beams.beam_search(
            chances(0),
            Vocabulary(TEXT, 2),
            [],
            BeamSearchConfig(num_beams=2, min_new_tokens=0, max_new_tokens=6),
        )
    with pytest.raises(ValueError, match="not finite"):
        write(torch.full((7, IDS, IDS), float("nan")), {"num_beams": 2, "min_new_tokens": 0})
    with pytest.raises(ValueError, match="min_new_tokens 7 is above max_new_tokens 6"):
        BeamSearchConfig(num_beams=2, min_new_tokens=7, max_new_tokens=6)
