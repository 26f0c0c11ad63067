"""Bulk tokenization from and to an object store that misbehaves."""

import json

import pytest

from pictish.cli import main
from pictish.io import storage
from pictish.io.storage import list_folder, read_bytes, upload
from tests.bulk_runs import content, raw_shards
from tests.store import misbehaving_store


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.01)
    with misbehaving_store(monkeypatch) as running:
        yield running


def test_shards_of_a_store_become_shards_in_it(tmp_path, tiny_models, capsys, store):
    """Every third request fails in one of five ways; the bytes are those of local work, nothing is lost."""
    raw_shards(tmp_path / "raw", 3)
    for path in (tmp_path / "raw").iterdir():
        upload(path, f"s3://raw/set/{path.name}")
    plain = ["--model", str(tiny_models), "--workers", "0"]
    assert main(["tokenize", str(tmp_path / "raw"), str(tmp_path / "local"), *plain]) == 0
    kinds = ("503", "cut", "short", "lost")
    store.faults = lambda number, method, path: (
        "hang" if number == 10 else kinds[number // 3 % 4] if number % 3 == 0 else None
    )
    report = tmp_path / "report.json"
    words = ["tokenize", "s3://raw/set", "s3://tokens/set", *plain, "--report", str(report)]
    assert main(words) == 0, capsys.readouterr().err
    assert len(store.injected) >= 5
    store.faults = lambda number, method, path: None
    found = {name: read_bytes(f"s3://tokens/set/{name}") for name in list_folder("s3://tokens/set")}
    assert found == content(tmp_path / "local")
    assert json.loads(report.read_text())["lost"] == {}
    capsys.readouterr()
    assert main(words) == 0
    assert "12 already done" in capsys.readouterr().out


def test_a_store_that_goes_away_loses_shards_by_name_and_a_later_run_makes_them(
    tmp_path, tiny_models, capsys, store
):
    raw_shards(tmp_path / "raw", 2)
    for path in (tmp_path / "raw").iterdir():
        upload(path, f"s3://raw/away/{path.name}")
    store.faults = lambda number, method, path: "503" if "raw-1.tar" in path and method == "GET" else None
    words = ["tokenize", "s3://raw/away", str(tmp_path / "out"), "--model", str(tiny_models)]
    words += ["--workers", "0"]
    assert main([*words, "--retries", "0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("pictish: raw-1.tar: s3://raw/away/raw-1.tar: ")
    assert len(error.splitlines()) == 1
    assert "raw-0_stats.json" in content(tmp_path / "out")
    assert "raw-1.tar" not in content(tmp_path / "out")
    store.faults = lambda number, method, path: None
    assert main(words) == 0
    assert sorted(content(tmp_path / "out")) == sorted(
        ["_header.json", "raw-0.tar", "raw-0_stats.json", "raw-1.tar", "raw-1_stats.json"]
    )


def test_pictures_of_a_store_are_refused(capsys, tmp_path):
    assert main(["tokenize", str(tmp_path), "s3://tokens/x"]) == 2
    assert "only token shards can go to a URL" in capsys.readouterr().err
