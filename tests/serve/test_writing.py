"""What the engine's writer does where one candidate fails: its job ends, and no other notices."""

import asyncio

import pytest

from pictish.pipelines.pipeline import Pipeline
from pictish.pipelines.settings import GenerationConfig
from pictish.serve.jobs import Draw, Job
from pictish.serve.writing import Writer


@pytest.fixture
def writer(whole_model) -> Writer:
    return Writer(Pipeline.from_pretrained(whole_model, device="cpu"))


def job(words: str, best_of: int) -> Job:
    loop = asyncio.new_event_loop()
    return Job(Draw((words,), 0, GenerationConfig(best_of=best_of, max_codes=4)), 0, loop, asyncio.Queue())


def drained(writer: Writer) -> list[list[int]]:
    found = []
    while writer.busy:
        found += [written.tokens.ids.tolist() for written in writer.step()]
    return found


def test_a_job_whose_candidates_do_not_all_fit_leaves_none_behind(writer, monkeypatch):
    sequences = writer.batches[None].sequences
    other = job("the sun", 1)
    assert writer.begin(other)
    added, add = [], sequences.add

    def no_third(*args, **kwargs):
        if len(added) == 2:
            raise MemoryError("no room")
        added.append(add(*args, **kwargs))
        return added[-1]

    monkeypatch.setattr(sequences, "add", no_third)
    with pytest.raises(MemoryError, match="no room"):
        writer.begin(job("a red apple", 4))
    assert len(added) == 2
    assert writer.sequences == len(sequences.members) == 1
    assert len(drained(writer)) == 1


def test_every_candidate_counts_until_it_is_written(writer):
    assert writer.begin(job("a red apple", 5))
    assert writer.sequences == 5
    assert len(drained(writer)) == 1, "the best"
    assert writer.sequences == 0


def test_a_cancelled_job_takes_its_candidates_along(writer):
    cancelled = job("a red apple", 3)
    writer.begin(cancelled)
    list(writer.step())
    cancelled.cancel()
    assert drained(writer) == []
    assert writer.sequences == 0
