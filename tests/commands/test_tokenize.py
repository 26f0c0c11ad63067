import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictish.cli import main
from pictish.data.images import find_images
from pictish.data.loader import decode_images
from pictish.data.samples import Edit, parse_sample
from pictish.data.shards import ShardFile, read_shard
from pictish.data.token_folder import find_tokens, read_manifest, read_tokens
from pictish.data.tokens import TokenizedImage
from pictish.tokenizer.dynamic import Tokenizer
from tests.conftest import save_tiny_models
from tests.tree import ROOT


def picture(number, width=40, height=30):
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width + number, height), Image.Resampling.BICUBIC)


def fill(folder, count, start=0):
    """Images of several kinds, in folders, with awkward names."""
    for number in range(start, start + count):
        path = (
            folder
            / ("" if number % 3 else "sub dir/ü 名")
            / f"a [b] {number}.{('png', 'jpg', 'webp')[number % 3]}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return folder


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def tokenize(tiny_models, capsys):
    """Run the command; its exit code. What it printed is in `tokenize.out` and `tokenize.err`."""

    def run(*words, model=tiny_models):
        code = main(["tokenize", *map(str, words), "--model", str(model)])
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


def test_a_folder_becomes_a_token_folder(tmp_path, tokenize, tiny_models):
    fill(tmp_path / "in", 7)
    assert tokenize(tmp_path / "in", tmp_path / "out") == 0
    images = find_images([tmp_path / "in"])
    tokens = find_tokens([tmp_path / "out"])
    assert [Path(t.name).with_suffix("") for t in tokens] == [Path(i.name).with_suffix("") for i in images]
    tokenizer = Tokenizer.from_folder(tiny_models)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.header.tokenizer == tokenizer.fingerprint
    for image, token in zip(images, tokens, strict=True):
        with Image.open(image.path) as opened:
            (expected,) = tokenizer.tokenize([opened.convert("RGB")])
            size = (opened.height, opened.width)
        found = read_tokens(token.path, expect_tokenizer=tokenizer.fingerprint)
        assert found == expected
        assert found.size == size
        entry = manifest.files[token.name]
        assert entry.source == image.name
        assert entry.source_sha256 == hashlib.sha256(image.path.read_bytes()).hexdigest()
        assert entry.tokens == len(found)
    assert len({len(read_tokens(token.path)) for token in tokens}) > 1  # the length varies
    assert tokenize.err == ""
    assert tokenize.out.startswith("7 images tokenized in ")
    assert "tokens per image" in tokenize.out
    assert "0 broken" in tokenize.out


@pytest.mark.parametrize("selection", [[], ["--budget", "9"], ["--sample", "--seed", "3"]])
def test_workers_batches_and_order_do_not_matter(tmp_path, tokenize, selection):
    fill(tmp_path / "in", 11)
    tokenize(tmp_path / "in", tmp_path / "out", *selection)
    expected = content(tmp_path / "out")
    assert len(expected) == 12
    parts = sorted(path for path in (tmp_path / "in").iterdir() if path.is_file())
    random.Random(1).shuffle(parts)
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "in" / "sub dir", tmp_path / "again" / "sub dir")
    for number, words in enumerate(
        [
            [tmp_path / "in", "--workers", "1", "--batch-size", "1"],
            [tmp_path / "in", "--workers", "2", "--batch-size", "32"],
            [tmp_path / "in", "--workers", "0", "--batch-size", "3"],
            [*parts, tmp_path / "again", "--workers", "2", "--batch-size", "5"],
        ]
    ):
        inputs = [word for word in words if isinstance(word, Path)]
        out = tmp_path / f"out{number}"
        assert tokenize(*inputs, out, *words[len(inputs) :], *selection) == 0
        assert content(out) == expected


def test_another_process_writes_the_same_bytes(tmp_path, tokenize, tiny_models):
    fill(tmp_path / "in", 5)
    tokenize(tmp_path / "in", tmp_path / "out")
    command = [sys.executable, "-m", "pictish", "tokenize", "in", "other", "--model", str(tiny_models)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert content(tmp_path / "other") == content(tmp_path / "out")


def test_the_manifest_names_no_place_time_or_number_of_workers(tmp_path, tokenize):
    fill(tmp_path / "in", 2)
    tokenize(tmp_path / "in", tmp_path / "out", "--workers", "2")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest) == {"codebook_size", "files", "format", "kind", "settings", "tokenizer"}
    assert set(manifest["settings"]) == {"budget", "quality", "seed", "threshold"}
    assert str(tmp_path) not in json.dumps(manifest)


KILLER = """
import os, random, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pictish.cli import main
import pictish.bulk.pictures, pictish.tokenizer.dynamic, timm, torch
torch.set_num_threads(1)
inputs, out, reference, model = sys.argv[2:]

def start(target, *words):
    pid = os.fork()
    if pid == 0:
        os._exit(main(["tokenize", inputs, target, "--model", model, "--batch-size", "2", "--quiet", *words]))
    return pid

_, status = os.waitpid(start(reference, "--workers", "1"), 0)
assert status == 0, status
chance = random.Random(5)
for kill in range(5):
    goal = 8 * kill
    pid = start(out, "--workers", str(kill % 2 + 1))
    while len(list(Path(out).rglob("*.tokens"))) < goal:
        time.sleep(0.002)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the run ended before it was killed"
    time.sleep(chance.random() * 0.05)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    print(kill, len(list(Path(out).rglob("*.tokens"))), flush=True)
done = {path: path.stat().st_ino for path in Path(out).rglob("*.tokens")}
_, status = os.waitpid(start(out), 0)
assert status == 0, status
assert all(path.stat().st_ino == inode for path, inode in done.items()), "finished work was repeated"
"""


def test_killed_at_random_moments_and_run_again_gives_the_same_bytes(tmp_path, tiny_models):
    fill(tmp_path / "in", 60)
    places = [ROOT, tmp_path / "in", tmp_path / "out", tmp_path / "reference", tiny_models]
    command = [sys.executable, "-c", KILLER, *map(str, places)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    counts = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(counts) == 5
    assert 32 <= counts[-1] < 60  # the kills came in the middle of the work
    assert content(tmp_path / "out") == content(tmp_path / "reference")
    assert len(content(tmp_path / "out")) == 61


def test_finished_work_is_not_repeated(tmp_path, tokenize, seen):
    fill(tmp_path / "in", 5)
    tokenize(tmp_path / "in", tmp_path / "out")
    assert sum(seen) == 5
    before = content(tmp_path / "out")
    assert tokenize(tmp_path / "in", tmp_path / "out") == 0
    assert sum(seen) == 5
    assert "0 images tokenized" in tokenize.out
    assert "5 already done" in tokenize.out
    assert content(tmp_path / "out") == before
    fill(tmp_path / "in", 2, start=5)
    assert tokenize(tmp_path / "in", tmp_path / "out") == 0
    assert sum(seen) == 7
    assert len(content(tmp_path / "out")) == 8


def test_a_picture_that_changed_is_not_overwritten_without_being_asked(tmp_path, tokenize, seen):
    fill(tmp_path / "in", 3)
    tokenize(tmp_path / "in", tmp_path / "out")
    before = content(tmp_path / "out")
    changed = find_images([tmp_path / "in"])[0]
    picture(99).save(changed.path)
    assert tokenize(tmp_path / "in", tmp_path / "out") == 1
    assert f"{changed.name.rpartition('.')[0]}.tokens exists already and differs" in tokenize.err
    assert content(tmp_path / "out") == before
    assert tokenize(tmp_path / "in", tmp_path / "out", "--overwrite") == 0
    fresh = tmp_path / "fresh"
    tokenize(tmp_path / "in", fresh)
    assert content(tmp_path / "out") == content(fresh)
    assert content(fresh) != before


def png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def spoil(folder):
    """Five broken images among the good ones; their names and what must be said of them."""
    jpeg = folder / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpeg)
    (folder / "cut.jpg").write_bytes(jpeg.read_bytes()[:1500])
    jpeg.unlink()
    (folder / "text.jpg").write_text("hello")
    (folder / "huge.png").write_bytes(png_header(30_000, 30_000))
    (folder / "unreadable.png").symlink_to(folder / "nothing.png")
    (folder / "with spaces ü 名\n.gif").write_bytes(b"GIF89a")
    return {
        "cut.jpg": "cannot be decoded",
        "text.jpg": "not an image",
        "huge.png": "900,000,000 pixels; at most 128,000,000",
        "unreadable.png": "No such file",
        "with spaces ü 名\\n.gif": "the file is truncated or damaged",
    }


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("words", [[], ["--format", "shards", "--samples-per-shard", "3"]])
def test_broken_pictures_are_named_and_counted_and_the_rest_is_done(tmp_path, tokenize, workers, words):
    fill(tmp_path / "in", 5)
    tokenize(tmp_path / "in", tmp_path / "clean", *words)
    complaints = spoil(tmp_path / "in")
    out = tmp_path / "out"
    assert tokenize(tmp_path / "in", out, "--workers", workers, *words) == 1
    lines = tokenize.err.splitlines()
    assert len(lines) == 5
    for name, complaint in complaints.items():
        assert any(name in line and complaint in line for line in lines), (name, lines)
    assert "5 images tokenized" in tokenize.out
    assert "5 broken" in tokenize.out
    if not words:
        assert content(out) == content(tmp_path / "clean")
    else:
        samples = [sample for shard in sorted(out.glob("*.tar")) for sample in read_shard(shard)]
        expected = [
            sample for shard in sorted((tmp_path / "clean").glob("*.tar")) for sample in read_shard(shard)
        ]
        assert samples == expected
    before = content(out)
    assert tokenize(tmp_path / "in", out, "--workers", workers, *words) == 1  # they are still broken
    assert "0 images tokenized" in tokenize.out
    assert "5 broken" in tokenize.out
    assert content(out) == before


def test_an_unreadable_file_is_named(tmp_path, tokenize):
    fill(tmp_path / "in", 1)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    assert tokenize(tmp_path / "in", tmp_path / "out") == 1
    assert "pipe.png: not a regular file" in tokenize.err


def test_strict_stops_at_the_first_broken_picture(tmp_path, tokenize):
    fill(tmp_path / "in", 3)
    spoil(tmp_path / "in")
    assert tokenize(tmp_path / "in", tmp_path / "out", "--strict") == 1
    assert len(tokenize.err.splitlines()) == 1
    assert "tokenized" not in tokenize.out
    assert not (tmp_path / "out" / "manifest.json").exists()
    for broken in ("cut.jpg", "text.jpg", "huge.png", "unreadable.png", "with spaces ü 名\n.gif"):
        (tmp_path / "in" / broken).unlink()
    assert tokenize(tmp_path / "in", tmp_path / "out", "--strict") == 0
    tokenize(tmp_path / "in", tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_max_pixels_is_the_users_to_set(tmp_path, tokenize):
    fill(tmp_path / "in", 2)  # 40 x 30 and 41 x 30
    assert tokenize(tmp_path / "in", tmp_path / "out", "--max-pixels", "1200") == 1
    assert "1,230 pixels; at most 1,200" in tokenize.err
    assert tokenize(tmp_path / "in", tmp_path / "out", "--max-pixels", "1230") == 0


def test_inputs_that_cannot_be_used_are_one_line_and_nothing_is_written(tmp_path, tokenize):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    picture(0).save(meeting / "a.png")
    picture(1).save(meeting / "a.jpg")
    (tmp_path / "slash").mkdir()
    picture(0).save(tmp_path / "slash" / "a\\b.png")
    for name, complaint in (
        ("empty", "no images found"),
        ("nowhere", "no such file"),
        ("notes.txt", "not an image by its name"),
        ("meeting", "would both become a.tokens"),
        ("slash", "rename it"),
    ):
        for words in ([], ["--format", "shards"]):
            assert tokenize(tmp_path / name, tmp_path / "out", *words) == 2
            assert complaint in tokenize.err
            assert len(tokenize.err.splitlines()) == 1
            assert not (tmp_path / "out").exists()
    assert "a.jpg" in str(sorted(meeting.iterdir()))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--budget", "9", "--threshold", "0.3"], "exclude each other"),
        (["--budget", "9", "--sample"], "exclude each other"),
        (["--budget", "9", "--quality", "20"], "--budget and --quality were given; they exclude each other"),
        (["--quality", "0"], "decibels between 0 and 100"),
        (["--budget", "65"], "1 to 64 tokens"),
        (["--budget", "0"], "--budget"),
        (["--threshold", "1.5"], "between 0 and 1"),
        (["--workers", "-1"], "--workers"),
        (["--format", "zip"], "--format"),
        (["--device", "tpu"], "tpu"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_flags_that_make_no_sense_are_one_line_and_nothing_is_written(
    tmp_path, capsys, tiny_models, words, complaint
):
    fill(tmp_path / "in", 1)
    command = ["tokenize", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(tiny_models), *words]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_budget_threshold_and_sample_do_what_they_say(tmp_path, tokenize):
    fill(tmp_path / "in", 6)
    lengths = {}
    for name, words in {
        "nine": ["--budget", "9"],
        "few": ["--threshold", "0.9"],
        "many": ["--threshold", "0.1"],
        "drawn": ["--sample", "--seed", "1"],
        "drawn again": ["--sample", "--seed", "2"],
    }.items():
        assert tokenize(tmp_path / "in", tmp_path / name, *words, "--quiet") == 0
        assert tokenize.out == tokenize.err == ""
        lengths[name] = [len(read_tokens(token.path)) for token in find_tokens([tmp_path / name])]
    assert lengths["nine"] == [9] * 6
    assert sum(lengths["few"]) < sum(lengths["many"])
    drawn, again = (content(tmp_path / name) for name in ("drawn", "drawn again"))
    assert all(drawn[name] != again[name] for name in drawn)


def test_quality_is_a_number_of_codes_for_each_picture(tmp_path, tokenize):
    fill(tmp_path / "in", 6)
    lengths = {}
    for decibels in (1, 20, 60):
        out = tmp_path / str(decibels)
        assert tokenize(tmp_path / "in", out, "--quality", str(decibels), "--quiet") == 0
        lengths[decibels] = [len(read_tokens(token.path)) for token in find_tokens([out])]
        assert json.loads((out / "manifest.json").read_text())["settings"]["quality"] == decibels
    assert lengths[1] == [1] * 6
    assert all(few <= many for few, many in zip(lengths[20], lengths[60], strict=True))
    assert sum(lengths[60]) > sum(lengths[1])
    assert tokenize(tmp_path / "in", tmp_path / "20", "--quality", "60") == 2
    assert "was written with quality 20.0, this run has 60.0" in tokenize.err


def test_quality_is_refused_for_a_tokenizer_that_predicts_no_errors(tmp_path, capsys):
    from pictish.tokenizer.dynamic import save_tokenizer
    from tests.tokenizer.conftest import ORDERED, tiny_network

    save_tokenizer(tmp_path / "model" / "tokenizer", tiny_network(**ORDERED))
    fill(tmp_path / "in", 1)
    command = ["tokenize", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    assert main([*command, "--quality", "20"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--quality: this tokenizer does not predict its errors; give --budget or --threshold" in line
    assert not (tmp_path / "out").exists()
    assert main([*command, "--budget", "4", "--quiet"]) == 0


def test_a_draw_belongs_to_the_picture_and_not_to_its_neighbours(tmp_path, tokenize):
    fill(tmp_path / "in", 6)
    tokenize(tmp_path / "in", tmp_path / "all", "--sample")
    one = find_images([tmp_path / "in"])[4]
    (tmp_path / "one" / one.name).parent.mkdir(parents=True)
    shutil.copy(one.path, tmp_path / "one" / one.name)
    tokenize(tmp_path / "one", tmp_path / "alone", "--sample")
    (token,) = find_tokens([tmp_path / "alone"])
    assert token.path.read_bytes() == (tmp_path / "all" / token.name).read_bytes()


def test_flags_that_do_nothing_are_said_to(tmp_path, tokenize, caplog):
    fill(tmp_path / "in", 1)
    assert tokenize(tmp_path / "in", tmp_path / "out", "--seed", "3", "--samples-per-shard", "2") == 0
    assert "--seed is ignored without --sample or --gumbel" in caplog.text
    assert "--samples-per-shard is ignored without --format shards" in caplog.text


def test_an_output_of_another_tokenizer_or_of_other_settings_is_refused(tmp_path, tokenize):
    fill(tmp_path / "in", 3)
    save_tiny_models(tmp_path / "other", seed=1)
    tokenize(tmp_path / "in", tmp_path / "out")
    before = content(tmp_path / "out")
    assert tokenize(tmp_path / "in", tmp_path / "out", model=tmp_path / "other") == 2
    assert "was written with tokenizer" in tokenize.err
    assert tokenize(tmp_path / "in", tmp_path / "out", "--budget", "4") == 2
    assert "was written with budget none, this run has 4" in tokenize.err
    assert tokenize(tmp_path / "in", tmp_path / "out", "--format", "shards") == 2
    assert "was written with kind token-folder" in tokenize.err
    assert content(tmp_path / "out") == before
    assert tokenize(tmp_path / "in", tmp_path / "out", "--overwrite", model=tmp_path / "other") == 0
    tokenize(tmp_path / "in", tmp_path / "fresh", model=tmp_path / "other")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def raw_shards(folder, count=3):
    """Shards with an image, a caption and JSON a sample."""
    for number in range(count):
        with ShardFile(folder / f"raw-{number}.tar") as shard:
            for index in range(4):
                blob = tmp_png(number * 10 + index)
                others = {"txt": f"caption {index}".encode(), "json": b'{"licence": "MIT"}'}
                shard.write(f"s{number}/{index:03d}", {"png": blob, **others})
    return folder


def beside(shards):
    """Names of shards and of their stats."""
    return sorted(name for shard in shards for name in (shard, shard.replace(".tar", "_stats.json")))


def tmp_png(number):
    import io

    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_folder_becomes_shards(tmp_path, tokenize, seen):
    fill(tmp_path / "in", 7)
    picture(3).save(tmp_path / "in" / "dots.in.name.png")
    words = ["--format", "shards", "--samples-per-shard", "3"]
    assert tokenize(tmp_path / "in", tmp_path / "out", *words) == 0
    assert sorted(content(tmp_path / "out")) == [
        "manifest.json",
        *(f"shard-{number:06d}.tar" for number in range(3)),
    ]
    tokenize(tmp_path / "in", tmp_path / "folder")
    files = {name: blob for name, blob in content(tmp_path / "folder").items() if name.endswith(".tokens")}
    samples = [sample for shard in sorted((tmp_path / "out").glob("*.tar")) for sample in read_shard(shard)]
    assert {s["__key__"].replace("%2E", ".") + ".tokens": s["tokens"] for s in samples} == files
    for number, more in enumerate((["--workers", "2", "--batch-size", "1"], ["--workers", "0"])):
        tokenize(tmp_path / "in", tmp_path / f"out{number}", *words, *more)
        assert content(tmp_path / f"out{number}") == content(tmp_path / "out")
    seen.clear()
    (tmp_path / "out" / "shard-000001.tar").unlink()
    assert tokenize(tmp_path / "in", tmp_path / "out", *words) == 0
    assert sum(seen) == 3
    assert content(tmp_path / "out") == content(tmp_path / "out0")


def test_a_shard_whose_pictures_changed_is_kept_and_named(tmp_path, tokenize):
    fill(tmp_path / "in", 4)
    words = ["--format", "shards", "--samples-per-shard", "2"]
    tokenize(tmp_path / "in", tmp_path / "out", *words)
    before = content(tmp_path / "out")
    picture(99).save(find_images([tmp_path / "in"])[0].path)
    assert tokenize(tmp_path / "in", tmp_path / "out", *words) == 1
    assert "shard-000000.tar: its images have changed" in tokenize.err
    assert content(tmp_path / "out") == before
    assert tokenize(tmp_path / "in", tmp_path / "out", *words, "--overwrite") == 0
    assert content(tmp_path / "out") != before


def test_raw_shards_become_shards_of_the_same_names_with_their_captions(
    tmp_path, tokenize, seen, tiny_models
):
    raw_shards(tmp_path / "raw")
    assert tokenize(tmp_path / "raw", tmp_path / "out", "--workers", "2") == 0
    names = ["raw-0.tar", "raw-1.tar", "raw-2.tar"]
    assert sorted(content(tmp_path / "out")) == ["_header.json", *beside(names)]
    tokenizer = Tokenizer.from_folder(tiny_models)
    for name in names:
        before, after = (list(read_shard(tmp_path / folder / name)) for folder in ("raw", "out"))
        assert len(before) == 4
        for raw, sample in zip(before, after, strict=True):
            assert set(sample) == {"__key__", "tokens", "txt", "json"}
            assert all(sample[member] == raw[member] for member in ("__key__", "txt", "json"))
            path = tmp_path / "one.png"
            path.write_bytes(raw["png"])
            (decoded,) = decode_images(find_images([path]), tokenizer.image_size, workers=0)
            (expected,) = tokenizer.tokenize([Image.open(path)])
            assert TokenizedImage.from_bytes(sample["tokens"]) == expected
            assert decoded.size == expected.size
    assert tokenize(tmp_path / "raw", tmp_path / "out") == 0
    assert "12 already done" in tokenize.out
    reordered = [tmp_path / "raw" / name for name in ("raw-2.tar", "raw-0.tar", "raw-1.tar")]
    assert tokenize(*reordered, tmp_path / "again", "--workers", "0", "--batch-size", "1") == 0
    assert content(tmp_path / "again") == content(tmp_path / "out")


def test_samples_of_several_pictures_keep_them_all_or_are_left_out(tmp_path, tokenize, tiny_models):
    told = b'{"edit": {"source": "source.png", "instruction": "mirror it", "target": "target.png"}}'
    (tmp_path / "raw").mkdir()
    with ShardFile(tmp_path / "raw" / "edits.tar") as shard:
        shard.write("a", {"source.png": tmp_png(1), "target.png": tmp_png(2), "json": told})
        shard.write("b", {"source.png": tmp_png(3), "target.png": b"hello", "json": told})
        shard.write("c", {"source.png": tmp_png(4), "png": tmp_png(5), "txt": b"two"})
    assert tokenize(tmp_path / "raw", tmp_path / "out", "--batch-size", "1") == 1
    assert "edits.tar/b: " in tokenize.err
    samples = {sample.pop("__key__"): sample for sample in read_shard(tmp_path / "out" / "edits.tar")}
    assert set(samples["a"]) == {"source.tokens", "target.tokens", "json"}
    assert samples["a"]["json"] == told
    assert set(samples["c"]) == {"source.tokens", "tokens", "txt"}
    tokenizer = Tokenizer.from_folder(tiny_models)
    for key, member, number in (("a", "source", 1), ("a", "target", 2), ("c", "source", 4), ("c", "", 5)):
        (expected,) = tokenizer.tokenize([picture(number)])
        blob = samples[key][f"{member}.tokens" if member else "tokens"]
        assert TokenizedImage.from_bytes(blob) == expected
    edit = parse_sample("edits.tar", "a", samples["a"], tokenizer.fingerprint)
    assert isinstance(edit, Edit)
    assert tokenize(tmp_path / "raw", tmp_path / "again", "--workers", "2") == 1
    assert content(tmp_path / "again") == content(tmp_path / "out")


def test_broken_samples_and_shards_are_named_and_the_rest_is_done(tmp_path, tokenize):
    raw_shards(tmp_path / "raw")
    whole = (tmp_path / "raw" / "raw-0.tar").read_bytes()
    (tmp_path / "raw" / "raw-0.tar").write_bytes(whole[: len(whole) // 2])
    with ShardFile(tmp_path / "raw" / "raw-1.tar") as shard:
        shard.write("good", {"png": tmp_png(0)})
        shard.write("bad", {"jpg": b"hello"})
        shard.write("none", {"txt": b"only words"})
    for _ in range(2):
        assert tokenize(tmp_path / "raw", tmp_path / "out") == 1
        lines = tokenize.err.splitlines()
        assert len(lines) == 3
        assert any("raw-0.tar" in line and "truncated" in line for line in lines) or "end of data" in lines[0]
        assert any("bad" in line for line in lines)
        assert any("none" in line for line in lines)
    assert sorted(content(tmp_path / "out")) == ["_header.json", *beside(["raw-1.tar", "raw-2.tar"])]
    assert [sample["__key__"] for sample in read_shard(tmp_path / "out" / "raw-1.tar")] == ["good"]
    stats = json.loads((tmp_path / "out" / "raw-1_stats.json").read_text())
    assert list(stats["left_out"]) == ["bad", "none"]


def test_shards_are_not_mixed_and_not_written_over_themselves(tmp_path, tokenize):
    raw_shards(tmp_path / "raw", 1)
    fill(tmp_path / "in", 1)
    shutil.copytree(tmp_path / "raw", tmp_path / "copy")
    before = content(tmp_path / "raw")
    for words, complaint in (
        ([tmp_path / "raw", tmp_path / "in", tmp_path / "out"], "tokenize them in separate runs"),
        ([tmp_path / "raw", tmp_path / "out", "--format", "folder"], "--format folder is for images"),
        ([tmp_path / "raw", tmp_path / "raw", "--overwrite"], "replaced by its own tokens"),
        ([tmp_path / "raw", tmp_path / "copy", tmp_path / "out"], "would both become raw-0.tar"),
    ):
        assert tokenize(*words) == 2
        assert complaint in tokenize.err
    assert content(tmp_path / "raw") == before
    assert not (tmp_path / "out").exists()
