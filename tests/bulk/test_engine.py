import threading
import time

import pytest

from pictish.bulk.engine import WorkerDied, drive, settle
from pictish.bulk.shard import Outcome
from pictish.io.storage import Stored


def shards(count):
    return [Stored(f"/in/{number}.tar", f"{number}.tar", 1) for number in range(count)]


class Scripted:
    """A worker that does what a script says of a shard's attempts: an outcome's kind, or `die`."""

    def __init__(self, script=None):
        self.script = script or {}
        self.tried = []
        self.stops = 0

    def run(self, source):
        self.tried.append(source.name)
        plan = self.script.get(source.name, [])
        number = self.tried.count(source.name) - 1
        what = plan[number] if number < len(plan) else "done"
        if what == "die":
            raise WorkerDied("it died")
        return Outcome(what, reason="" if what == "done" else f"{what} {number}")

    def stop(self):
        self.stops += 1


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("pictish.bulk.engine._LONGEST_WAIT", 0.0)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_shard_is_settled_once_whatever_happens_to_workers(workers):
    script = {"1.tar": ["die", "again"], "3.tar": ["die"] * 3, "4.tar": ["lost"], "5.tar": ["again"]}
    crew = [Scripted(script) for _ in range(workers)]
    outcomes = {source.name: outcome for source, outcome in drive(crew, shards(8), retries=2)}
    assert sorted(outcomes) == [f"{number}.tar" for number in range(8)]
    assert {name for name, outcome in outcomes.items() if outcome.kind == "lost"} == {"3.tar", "4.tar"}
    assert (outcomes["1.tar"].kind, outcomes["1.tar"].attempts) == ("done", 3)
    assert outcomes["3.tar"].reason == "it died (tried 3 times)"
    assert (outcomes["4.tar"].reason, outcomes["4.tar"].attempts) == ("lost 0", 1)
    assert outcomes["5.tar"].attempts == 2
    assert sum(len(one.tried) for one in crew) == 8 + 2 + 2 + 1
    assert all(one.stops == 1 for one in crew)


def test_no_retries_means_one_attempt():
    worker = Scripted({"0.tar": ["again"]})
    outcome = settle(worker, shards(1)[0], 0, threading.Event())
    assert (outcome.kind, outcome.reason, outcome.attempts) == ("lost", "again 0 (tried once)", 1)


def test_closing_early_ends_the_workers_and_hands_out_no_more():
    class Slow(Scripted):
        def run(self, source):
            time.sleep(0.01)
            return super().run(source)

    crew = [Slow(), Slow()]
    outcomes = drive(crew, shards(500), retries=2)
    next(outcomes)
    outcomes.close()
    assert all(one.stops == 1 for one in crew)
    assert sum(len(one.tried) for one in crew) < 100


def test_a_bug_in_a_worker_is_not_swallowed():
    class Broken(Scripted):
        def run(self, source):
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        list(drive([Broken(), Broken()], shards(4), retries=2))
