"""Bulk tokenization by Ray actors, in a cluster that the command starts on this machine."""

import json
import os
import signal
import threading
import time
import types

import psutil
import pytest

from pictish.bulk.batch_tokenizer import BatchTokenizerSettings, Selection
from pictish.bulk.engine import WorkerDied
from pictish.bulk.ray_engine import RayWorker
from pictish.bulk.shard import Bulk, Outcome
from pictish.cli import main
from pictish.io.storage import Stored
from tests.bulk_runs import content, pictish, raw_shards

ray = pytest.importorskip("ray")


def test_ray_under_a_launcher_is_refused(tmp_path, monkeypatch, capsys, tiny_models):
    raw_shards(tmp_path / "raw", 1)
    for key, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(key, value)
    words = ["tokenize", tmp_path / "raw", tmp_path / "out", "--engine", "ray", "--model", tiny_models]
    assert main([*map(str, words)]) == 2
    assert "start it once" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class FakeRay:
    """As much of Ray as a worker uses; the first actor dies of its first shard."""

    def __init__(self):
        self.actors, self.killed = [], []

    def remote(self, kind):
        made = types.SimpleNamespace(options=lambda **options: types.SimpleNamespace(remote=self._make))
        assert kind.__name__ == "ShardActor"
        return made

    def _make(self, bulk):
        actor = types.SimpleNamespace(tokenize=types.SimpleNamespace(remote=lambda shard: (actor, shard)))
        self.actors.append(json.loads(json.dumps(bulk)))
        actor.number = len(self.actors)
        return actor

    def get(self, call):
        actor, shard = call
        if actor.number == 1:
            raise ray.exceptions.ActorDiedError()
        return {"kind": "done", "stats": None, "reason": shard["name"], "attempts": 1}

    def kill(self, actor):
        self.killed.append(actor.number)


def test_a_dead_actor_is_made_anew_and_given_a_place_alone(monkeypatch):
    fake = FakeRay()
    for name in ("remote", "get", "kill"):
        monkeypatch.setattr(ray, name, getattr(fake, name))
    batch_tokenizer = BatchTokenizerSettings("starter", "cpu", Selection(), 0, 4, 100)
    worker = RayWorker(Bulk(batch_tokenizer, "out", {}, False, False))
    source = Stored("s3://bucket/a.tar", "a.tar", 7)
    with pytest.raises(WorkerDied, match="the Ray actor that tokenized it died"):
        worker.run(source)
    assert worker.run(source) == Outcome("done", reason="a.tar")
    assert len(fake.actors) == 2
    assert Bulk.from_json(fake.actors[1]).batch_tokenizer == batch_tokenizer
    worker.stop()
    assert fake.killed == [2]
    with pytest.raises(WorkerDied, match="stopped"):
        worker.run(source)


def kill_an_actor(out, killed):
    """SIGKILL the first actor that is seen at a shard while one is half written."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if any(out.glob(".raw-*.tar.pictish-tmp")):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.cmdline()[:1] == ["ray::ShardActor.tokenize"]:
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        return
                except (psutil.Error, ProcessLookupError):
                    continue
        time.sleep(0.01)


@pytest.mark.exhaustive
def test_an_actor_that_is_killed_loses_nothing(tmp_path, tiny_models):
    raw_shards(tmp_path / "raw", 6, samples=40)
    plain = ["--model", tiny_models, "--workers", "0"]
    assert pictish("tokenize", tmp_path / "raw", tmp_path / "fresh", *plain).returncode == 0
    killed, out, report = [], tmp_path / "out", tmp_path / "report.json"
    thread = threading.Thread(target=kill_an_actor, args=(out, killed), daemon=True)
    thread.start()
    words = [*plain, "--engine", "ray", "--processes", "2", "--report", report]
    done = pictish("tokenize", tmp_path / "raw", out, *words, seconds=500)
    thread.join()
    assert len(killed) == 1
    assert done.returncode == 0, done.stderr
    facts = json.loads(report.read_text())
    assert facts["retried"]
    assert facts["shards"] == {"before": 0, "done": 6, "lost": 0}
    assert content(out) == content(tmp_path / "fresh")
    again = pictish("tokenize", tmp_path / "raw", out, *words)
    assert again.returncode == 0, again.stderr
    assert "240 already done" in again.stdout
