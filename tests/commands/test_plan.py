import json

import pytest

from pictish.cli import main
from pictish.commands.plan import estimate, worked_out
from tests.bulk_runs import raw_shards


def plan(capsys, *words):
    code = main(["plan", "tokenize", *map(str, words)])
    return code, *capsys.readouterr()


def test_a_thousand_million_pictures(capsys):
    """188 GB of ids and 556 hours: the same sum by hand."""
    code, out, _ = plan(capsys, "--images", "1e9", "--rate", "500", "--tokens", "94", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["id_bytes"] == 188 * 10**9
    assert facts["process_hours"] == pytest.approx(1e9 / 500 / 3600)
    assert facts["shards"] == 100_000
    assert facts["files"] == 200_001
    code, out, _ = plan(capsys, "--images", "1e9", "--rate", "2000", "--tokens", "256", "--processes", "8")
    assert code == 0
    assert "512 GB" in out
    assert "138.9" in out
    assert "17.4 h with 8 processes" in out


def test_everything_is_linear_in_the_number_of_pictures():
    sizes = worked_out(94, 65_536, 1)
    one, many = (estimate(count, 100.0, 4, 1000, **sizes) for count in (100_000, 10_000_000))
    for key in ("tokens", "process_hours", "wall_hours", "id_bytes", "shard_bytes", "shards"):
        assert many[key] == pytest.approx(100 * one[key]), key


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--images", "10", "--tokens", "9"], "--rate or --report"),
        (["--images", "10", "--rate", "9"], "--tokens or --like"),
        (["--images", "10", "--rate", "-1", "--tokens", "9"], "must be positive"),
        (["--images", "10", "--rate", "nan", "--tokens", "9"], "must be positive"),
        (["--images", "0", "--rate", "1", "--tokens", "9"], "--images"),
        (["--images", "10", "--rate", "1", "--like", "/nowhere"], "has no *_stats.json"),
        (
            ["--images", "10", "--rate", "1", "--like", "/nowhere", "--codes", "9"],
            "--like already determines --codes",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, words, complaint):
    code, out, error = plan(capsys, *words)
    assert code == 2
    assert out == ""
    assert complaint in error
    assert len(error.splitlines()) == 1


def test_a_report_that_is_none_is_one_line(tmp_path, capsys):
    for text in (
        "",
        "[]",
        "{}",
        '{"format": 7}',
        '{"format": 1, "pictures": 0, "seconds": 1, "processes": 1}',
    ):
        (tmp_path / "report.json").write_text(text)
        words = ["--images", "10", "--tokens", "9", "--report", tmp_path / "report.json"]
        code, _, error = plan(capsys, *words)
        assert code == 2
        assert len(error.splitlines()) == 1


def test_measured_shards_predict_shards_of_other_sizes(tmp_path, capsys, tiny_models):
    """Bytes and tokens of 40 pictures from what 8 of them measured, within a few per cent."""
    small, large = raw_shards(tmp_path / "small", 2), raw_shards(tmp_path / "large", 4, samples=10)
    report = tmp_path / "report.json"
    for raw, out in ((small, "few"), (large, "many")):
        words = ["tokenize", raw, tmp_path / out, "--model", tiny_models, "--budget", "9", "--report", report]
        assert main([*map(str, words), "--workers", "0"]) == 0
        capsys.readouterr()
    words = ["--images", "40", "--like", tmp_path / "few", "--report", report, "--per-shard", "10", "--json"]
    code, out, _ = plan(capsys, *words)
    facts = json.loads(out)
    stats = [json.loads(path.read_text()) for path in (tmp_path / "many").glob("raw-*_stats.json")]
    assert code == 0
    assert facts["tokens"] == sum(one["tokens"] for one in stats) == 360
    assert facts["shards"] == len(stats) == 4
    written = sum(one["bytes"] for one in stats)
    assert facts["shard_bytes"] == pytest.approx(written, rel=0.35)
    measured = json.loads(report.read_text())
    assert facts["rate_per_process"] == pytest.approx(measured["pictures_per_second"])
