"""Beam search against ids that transformers 4.33.2's BeamSearchScorer gave for the same random chances."""

import pytest
import torch

from pictish.lm import beams
from pictish.lm.config import WritingConfig
from pictish.lm.vocabulary import Vocabulary

TEXT, IDS, FIRST = 8, 12, [3, 4, 5]
RECORDED = [
    ({"beams": 2, "least": 2}, [[5, 6, 0, 0, 7, 6], [6, 1, 0, 0, 7, 6], [6, 1, 0, 0, 7, 6]]),
    ({"beams": 3, "least": 0, "length_penalty": 0.0, "early": True}, [[], [7, 0], [0]]),
    (
        {"beams": 3, "least": 1, "length_penalty": 2.0},
        [[4, 0, 6, 4, 5, 6], [5, 3, 6, 4, 5, 6], [1, 0, 6, 4, 5, 6]],
    ),
    ({"beams": 2, "least": 0, "length_penalty": -1.0, "early": True}, [[], [1, 3, 4], []]),
]


class TableRows:
    """Stands for `Rows`: what comes next depends on the step and the id before it alone."""

    def __init__(self, table, prompts, room, cache):
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
    return beams.write(table, Vocabulary(TEXT, 2, eos=2), prompts, WritingConfig(most=6, **settings))


@pytest.fixture(autouse=True)
def _table_rows(monkeypatch):
    monkeypatch.setattr(beams, "Rows", TableRows)


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
    assert write(table, {"beams": 1, "least": 2}) == expected


def test_what_it_cannot_do_it_says():
    with pytest.raises(ValueError, match="no end-of-text token"):
        beams.write(chances(0), Vocabulary(TEXT, 2), [], WritingConfig(beams=2, least=0, most=6))
    with pytest.raises(ValueError, match="not finite"):
        write(torch.full((7, IDS, IDS), float("nan")), {"beams": 2, "least": 0})
    with pytest.raises(ValueError, match="least 7 is above most 6"):
        WritingConfig(beams=2, least=7, most=6)
