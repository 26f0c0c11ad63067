"""Bulk tokenization by Ray actors, in a cluster that the command starts on this machine."""

import json
import os
import signal
import threading
import time

import psutil
import pytest

from pictish.cli import main
from tests.bulk import content, pictish, raw_shards

pytest.importorskip("ray")


def test_ray_under_a_launcher_is_refused(tmp_path, monkeypatch, capsys, tiny_models):
    raw_shards(tmp_path / "raw", 1)
    for key, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(key, value)
    words = ["tokenize", tmp_path / "raw", tmp_path / "out", "--engine", "ray", "--model", tiny_models]
    assert main([*map(str, words)]) == 2
    assert "start it once" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


@pytest.mark.slow
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
    assert "240 were done before" in again.stdout
