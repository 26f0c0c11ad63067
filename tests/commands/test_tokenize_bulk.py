import json
import os
import signal
import threading
import time

import psutil
import pytest

from pictish.bulk.stats import BulkFolder
from pictish.cli import main
from pictish.data import loader
from pictish.data.shards import ShardFile, read_shard
from pictish.tokenizer.dynamic import Tokenizer
from tests.bulk_runs import content, noise_png, pictish, raw_shards
from tests.conftest import save_tiny_models


@pytest.fixture
def tokenize(tiny_models, capsys):
    """Run the command in this process; its exit code. What it printed is in `.out` and `.err`."""

    def run(*words, model=tiny_models):
        code = main(["tokenize", *map(str, words), "--model", str(model), "--workers", "0"])
        run.out, run.err = capsys.readouterr()
        return code

    return run


@pytest.fixture
def seen(monkeypatch):
    """The numbers of images given to the model, call by call."""
    calls = []
    original = Tokenizer.tokenize_pixels

    def counted(self, pixels, *rest, **settings):
        calls.append(len(pixels))
        return original(self, pixels, *rest, **settings)

    monkeypatch.setattr(Tokenizer, "tokenize_pixels", counted)
    return calls


def test_the_number_of_processes_does_not_show(tmp_path, tokenize, tiny_models):
    raw_shards(tmp_path / "raw", 3)
    assert tokenize(tmp_path / "raw", tmp_path / "one") == 0
    report = tmp_path / "report.json"
    words = ["--model", tiny_models, "--workers", "1", "--processes", "2", "--report", report]
    done = pictish("tokenize", tmp_path / "raw", tmp_path / "two", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert content(tmp_path / "two") == content(tmp_path / "one")
    facts = json.loads(report.read_text())
    assert facts["shards"] == {"before": 0, "done": 3, "lost": 0}
    assert (facts["pictures"], facts["processes"], facts["lost"]) == (12, 2, {})
    assert facts["pictures_per_second"] == pytest.approx(12 / facts["seconds"])
    stats = json.loads((tmp_path / "one" / "raw-1_stats.json").read_text())
    samples = list(read_shard(tmp_path / "one" / "raw-1.tar"))
    assert (stats["samples"], stats["pictures"], stats["left_out"]) == (len(samples), 4, {})
    assert stats["bytes"] == (tmp_path / "one" / "raw-1.tar").stat().st_size
    assert stats["source_bytes"] == (tmp_path / "raw" / "raw-1.tar").stat().st_size
    assert str(tmp_path) not in json.dumps(stats)


def test_the_parent_of_processes_loads_no_tokenizer(tmp_path, tokenize, monkeypatch):
    """It needs two facts of the model, which its folder tells."""
    raw_shards(tmp_path / "raw", 2)
    assert tokenize(tmp_path / "raw", tmp_path / "one") == 0
    monkeypatch.setattr(Tokenizer, "from_folder", None)
    assert tokenize(tmp_path / "raw", tmp_path / "two", "--processes", "2") == 0
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert tokenize(tmp_path / "raw", tmp_path / "three", "--processes", "2", "--budget", "65") == 2
    assert "an image of this model has 1 to 64 tokens" in tokenize.err


def test_only_what_is_missing_is_made(tmp_path, tokenize, seen):
    raw_shards(tmp_path / "raw", 3)
    tokenize(tmp_path / "raw", tmp_path / "out")
    before = content(tmp_path / "out")
    for gone in ("raw-1_stats.json", "raw-2.tar"):
        seen.clear()
        (tmp_path / "out" / gone).unlink()
        assert tokenize(tmp_path / "raw", tmp_path / "out") == 0
        assert sum(seen) == 4
        assert "8 already done" in tokenize.out
        assert content(tmp_path / "out") == before
    (tmp_path / "out" / "raw-0.tar").write_bytes(b"short")
    assert tokenize(tmp_path / "raw", tmp_path / "out") == 0
    assert content(tmp_path / "out") == before


def test_verify_finds_what_sizes_do_not_tell(tmp_path, tokenize, seen):
    raw_shards(tmp_path / "raw", 2)
    tokenize(tmp_path / "raw", tmp_path / "out")
    before = content(tmp_path / "out")
    flipped = bytearray(before["raw-0.tar"])
    flipped[700] ^= 1
    (tmp_path / "out" / "raw-0.tar").write_bytes(flipped)
    seen.clear()
    assert tokenize(tmp_path / "raw", tmp_path / "out") == 0
    assert seen == []
    assert tokenize(tmp_path / "raw", tmp_path / "out", "--verify") == 0
    assert sum(seen) == 4
    assert content(tmp_path / "out") == before


def test_a_source_that_changed_is_told_and_its_tokens_kept(tmp_path, tokenize):
    raw_shards(tmp_path / "raw", 2)
    tokenize(tmp_path / "raw", tmp_path / "out")
    before = content(tmp_path / "out")
    with ShardFile(tmp_path / "raw" / "raw-0.tar") as shard:
        for number in range(30):
            shard.write(f"other-{number}", {"png": noise_png(77 + number)})
    assert tokenize(tmp_path / "raw", tmp_path / "out") == 1
    assert "raw-0.tar: its images have changed since; --overwrite" in tokenize.err
    assert "1 shard lost" in tokenize.out
    assert content(tmp_path / "out") == before
    assert tokenize(tmp_path / "raw", tmp_path / "out", "--overwrite") == 0
    tokenize(tmp_path / "raw", tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_other_settings_need_overwrite_and_go_on_without_it(tmp_path, tokenize, seen):
    raw_shards(tmp_path / "raw", 2)
    save_tiny_models(tmp_path / "other", seed=1)
    tokenize(tmp_path / "raw", tmp_path / "out")
    assert tokenize(tmp_path / "raw", tmp_path / "out", model=tmp_path / "other") == 2
    assert "was written with tokenizer" in tokenize.err
    assert tokenize(tmp_path / "raw", tmp_path / "out", "--budget", "4") == 2
    assert "was written with budget none, this run has 4" in tokenize.err
    assert tokenize(tmp_path / "raw" / "raw-0.tar", tmp_path / "out", "--budget", "4", "--overwrite") == 2
    assert "1 of its shards (raw-1.tar ...) would not be replaced" in tokenize.err
    old = (tmp_path / "out" / "raw-1.tar").read_bytes(), (tmp_path / "out" / "raw-1_stats.json").read_bytes()
    assert tokenize(tmp_path / "raw", tmp_path / "out", "--budget", "4", "--overwrite") == 0
    tokenize(tmp_path / "raw", tmp_path / "fresh", "--budget", "4")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    # as if the run with --overwrite had been killed before its second shard
    (tmp_path / "out" / "raw-1.tar").write_bytes(old[0])
    (tmp_path / "out" / "raw-1_stats.json").write_bytes(old[1])
    seen.clear()
    assert tokenize(tmp_path / "raw", tmp_path / "out", "--budget", "4") == 0
    assert sum(seen) == 4
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_what_is_not_ours_is_not_replaced(tmp_path, tokenize):
    raw_shards(tmp_path / "raw", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "raw-0.tar").write_bytes(b"precious")
    assert tokenize(tmp_path / "raw", tmp_path / "out") == 1
    assert "raw-0.tar exists already and differs; --overwrite replaces it" in tokenize.err
    assert (tmp_path / "out" / "raw-0.tar").read_bytes() == b"precious"
    assert (tmp_path / "out" / "raw-1_stats.json").exists()
    assert tokenize(tmp_path / "raw", tmp_path / "out", "--overwrite") == 0
    for name, text in (("manifest.json", "{}"), ("_header.json", "[]"), ("_header.json", "what")):
        folder = tmp_path / f"foreign {text}"
        folder.mkdir()
        (folder / name).write_text(text)
        assert tokenize(tmp_path / "raw", folder) == 2
        assert "choose another folder" in tokenize.err
        assert [path.name for path in folder.iterdir()] == [name]


def test_a_shard_left_without_its_mark_is_made_again(tmp_path, tokenize):
    """As a kill between the shard and its stats leaves it, even when other hardware wrote other codes."""
    raw_shards(tmp_path / "raw", 1)
    tokenize(tmp_path / "raw", tmp_path / "out", "--budget", "5")
    tokenize(tmp_path / "raw", tmp_path / "fresh")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "raw-0.tar").write_bytes((tmp_path / "out" / "raw-0.tar").read_bytes())
    assert tokenize(tmp_path / "raw", tmp_path / "killed") == 0
    assert content(tmp_path / "killed") == content(tmp_path / "fresh")


def test_broken_samples_are_lost_by_name_and_strict_loses_the_shard(tmp_path, tokenize):
    raw_shards(tmp_path / "raw", 2)
    with ShardFile(tmp_path / "raw" / "raw-1.tar") as shard:
        shard.write("good", {"png": noise_png(1)})
        shard.write("bad", {"jpg": b"hello"})
    report = tmp_path / "report.json"
    assert tokenize(tmp_path / "raw", tmp_path / "out", "--strict", "--report", report) == 1
    assert "raw-1.tar: bad: " in tokenize.err
    assert not (tmp_path / "out" / "raw-1_stats.json").exists()
    assert list(json.loads(report.read_text())["lost"]) == ["raw-1.tar"]
    for _ in range(2):
        assert tokenize(tmp_path / "raw", tmp_path / "out", "--report", report) == 1
        assert tokenize.err.startswith("pictish: raw-1.tar/bad: ")
        facts = json.loads(report.read_text())
        assert list(facts["left_out"]["raw-1.tar"]) == ["bad"]
        assert facts["lost"] == {}


@pytest.fixture
def failing(monkeypatch):
    """Decoding has no memory for an image while its number of failures, set by the test, is above 0."""
    left = {"times": 0}
    original = loader.load_image

    def load(blob, *rest):
        if blob == noise_png(2) and left["times"]:
            left["times"] -= 1
            raise MemoryError
        return original(blob, *rest)

    monkeypatch.setattr(loader, "load_image", load)
    return left


@pytest.mark.parametrize("strict", [(), ("--strict",)])
def test_a_shard_with_a_loss_by_a_passing_fault_is_not_finished(tmp_path, tokenize, failing, strict):
    raw_shards(tmp_path / "raw", 2)
    tokenize(tmp_path / "raw", tmp_path / "fresh")
    failing["times"] = 1  # the second try succeeds within the run
    assert tokenize(tmp_path / "raw", tmp_path / "retried", *strict) == 0
    assert content(tmp_path / "retried") == content(tmp_path / "fresh")
    failing["times"] = 9
    out = tmp_path / "out"
    assert tokenize(tmp_path / "raw", out, "--retries", "0", *strict) == 1
    assert "raw-0.tar: s0/002: not enough memory to decode it; the shard is not marked" in tokenize.err
    assert not (out / "raw-0_stats.json").exists()
    assert strict or (out / "raw-1_stats.json").exists()  # strict ends at the first loss
    failing["times"] = 0
    assert tokenize(tmp_path / "raw", out) == 0
    assert content(out) == content(tmp_path / "fresh")


def test_a_shard_of_pictures_is_made_again_when_what_was_missing_can_be_read(tmp_path, tokenize, failing):
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.png").write_bytes(noise_png(number))
    (tmp_path / "in" / "4.png").write_bytes(b"no picture")
    words = ["--format", "shards"]
    assert tokenize(tmp_path / "in", tmp_path / "fresh", *words) == 1
    failing["times"] = 9
    assert tokenize(tmp_path / "in", tmp_path / "out", *words) == 1
    assert "3 images tokenized" in tokenize.out
    assert tokenize(tmp_path / "in", tmp_path / "out", *words) == 1
    assert content(tmp_path / "out") != content(tmp_path / "fresh")
    failing["times"] = 0
    assert tokenize(tmp_path / "in", tmp_path / "out", *words) == 1
    assert "4.png: not an image" in tokenize.err
    assert "4 images tokenized" in tokenize.out
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    assert tokenize(tmp_path / "in", tmp_path / "out", *words) == 1
    assert "0 images tokenized" in tokenize.out


def test_a_shard_that_another_run_writes_is_left_to_it(tmp_path, tokenize):
    raw_shards(tmp_path / "raw", 2)
    tokenize(tmp_path / "raw", tmp_path / "fresh")
    folder = BulkFolder(str(tmp_path / "out"), None, False)
    with folder.claim("raw-0.tar"):
        assert tokenize(tmp_path / "raw", tmp_path / "out", "--retries", "0") == 1
        assert "raw-0.tar: another process is writing it" in tokenize.err
        assert "4 images tokenized" in tokenize.out
    assert tokenize(tmp_path / "raw", tmp_path / "out") == 0
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_flags_of_raw_shards_are_said_to_do_nothing_for_pictures(tmp_path, tokenize, caplog):
    (tmp_path / "one.png").write_bytes(noise_png(0))
    assert tokenize(tmp_path / "one.png", tmp_path / "out", "--processes", "2", "--verify") == 0
    assert "--processes is ignored: it applies to input shards only" in caplog.text
    assert "--verify is ignored" in caplog.text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["ftp://host/x", "OUT"], "s3://"),
        (["pipe:cat x", "OUT"], "commands are not run"),
        (["RAW", "OUT", "--format", "folder"], "--format folder is for images"),
        (["RAW", "OUT", "--device", "tpu", "--processes", "2"], "tpu"),
        (["RAW", "OUT", "--processes", "0"], "--processes"),
        (["RAW", "OUT", "--engine", "spark"], "--engine"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(tmp_path, tokenize, words, complaint):
    raw_shards(tmp_path / "raw", 1)
    places = {"RAW": str(tmp_path / "raw"), "OUT": str(tmp_path / "out")}
    assert tokenize(*(places.get(word, word) for word in words)) == 2
    assert complaint in tokenize.err
    assert len(tokenize.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def kill_when(found, seconds=120):
    """SIGKILL the first of our descendants for which `found` is true; what was killed, and the thread."""
    killed = []

    def watch():
        deadline = time.monotonic() + seconds
        while not killed and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                try:
                    if found(process):
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        break
                except (psutil.Error, ProcessLookupError):
                    continue
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return killed, thread


def is_worker(process):
    return "pictish.bulk.local" in " ".join(process.cmdline())


@pytest.mark.exhaustive
def test_a_worker_that_is_killed_loses_nothing(tmp_path, tokenize, tiny_models):
    raw_shards(tmp_path / "raw", 6, samples=40)
    tokenize(tmp_path / "raw", tmp_path / "fresh")
    out, report = tmp_path / "out", tmp_path / "report.json"
    killed, thread = kill_when(lambda one: is_worker(one) and any(out.glob(".raw-*.tar.pictish-tmp")))
    words = ["--model", tiny_models, "--workers", "0", "--processes", "2", "--report", report]
    done = pictish("tokenize", tmp_path / "raw", out, *words)
    thread.join()
    assert len(killed) == 1
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(report.read_text())["retried"]
    assert content(out) == content(tmp_path / "fresh")


@pytest.mark.exhaustive
def test_a_parent_that_is_killed_takes_its_workers_along_and_can_be_run_again(
    tmp_path, tokenize, tiny_models
):
    raw_shards(tmp_path / "raw", 4, samples=40)
    tokenize(tmp_path / "raw", tmp_path / "fresh")
    out = tmp_path / "out"
    workers = []

    def is_parent(process):
        children = [one for one in process.children() if is_worker(one)]
        if len(children) == 2 and any(out.glob(".raw-*.tar.pictish-tmp")):
            workers.extend(children)
            return True
        return False

    killed, thread = kill_when(is_parent)
    words = ["--model", tiny_models, "--workers", "0", "--processes", "2"]
    assert pictish("tokenize", tmp_path / "raw", out, *words).returncode == -signal.SIGKILL
    thread.join()
    assert len(killed) == 1
    psutil.wait_procs(workers, timeout=20)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in workers)
    done = pictish("tokenize", tmp_path / "raw", out, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert content(out) == content(tmp_path / "fresh")
