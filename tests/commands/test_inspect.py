import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictish.cli import main
from pictish.commands.inspect import histogram_lines
from pictish.data.images import png_bytes
from pictish.data.shards import ShardWriter
from pictish.data.tokens import TokenizedImage


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, size=(4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((60, 40), Image.Resampling.BILINEAR)


def tokens(ids: list[int], tokenizer: str = "0123456789ab") -> TokenizedImage:
    return TokenizedImage(np.array(ids), np.arange(len(ids)), (8, 8), (10, 20), tokenizer, 64)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bild ü [1].png"
    picture(0).save(path)
    return path


@pytest.fixture
def token_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tokens"
    (folder / "sub").mkdir(parents=True)
    for number, ids in enumerate([[5, 5, 9, 1], [5, 63], [7, 7]]):
        (folder / "sub" / f"{number}.tokens").write_bytes(tokens(ids).to_bytes())
    return folder


def inspect(*words: object, model: Path | None = None) -> int:
    named = ["--model", str(model), "--device", "cpu"] if model else []
    return main(["inspect", *map(str, words), *named])


def facts(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


def test_a_picture_is_drawn_and_its_tokens_are_told(image, tiny_models, tmp_path, capsys):
    assert inspect(image, "--budget", 3, model=tiny_models) == 0
    text = capsys.readouterr().out
    drawing = tmp_path / "bild ü [1]-inspect.png"
    with Image.open(drawing) as drawn:
        assert drawn.width > 4 * 250
    assert "bild ü [1].png: 3 of at most 64 tokens" in text
    assert "bits per pixel" in text
    assert drawing.name in text

    assert inspect(image, "--budget", 3, "--json", "--out", tmp_path / "other.png", model=tiny_models) == 0
    found = facts(capsys)
    assert found["tokens"] == len(found["ids"]) == len(found["cells"]) == len(found["scores"]) == 3
    assert found["size"] == [40, 60]
    assert f"ids: {' '.join(map(str, found['ids']))}\n" in text
    assert (tmp_path / "other.png").read_bytes() == drawing.read_bytes()


def test_scores_belong_to_the_best_cells(image, tiny_models, tmp_path, capsys):
    from pictish.tokenizer.dynamic import Tokenizer

    tokenizer = Tokenizer.from_folder(tiny_models)
    cells = tokenizer.grid[0] * tokenizer.grid[1]
    found = {}
    for budget in (3, cells):
        out = tmp_path / f"{budget}.png"
        assert inspect(image, "--budget", budget, "--json", "--out", out, model=tiny_models) == 0
        found[budget] = facts(capsys)
    everything = found[cells]["scores"]
    assert found[cells]["cells"] == list(range(cells))
    assert sorted(found[3]["scores"]) == sorted(everything)[-3:]
    assert found[3]["scores"] == [everything[cell] for cell in found[3]["cells"]]


def test_nothing_is_overwritten_unless_asked(image, tiny_models, tmp_path, capsys):
    out = tmp_path / "drawing.png"
    out.write_bytes(b"mine")
    assert inspect(image, "--out", out, model=tiny_models) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert inspect(image, "--out", out, "--overwrite", "--quiet", model=tiny_models) == 0
    assert out.read_bytes() != b"mine"
    assert capsys.readouterr().out == ""


def test_a_code_sheet_of_a_folder(tiny_models, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for seed in range(3):
        picture(seed).save(tmp_path / "pictures" / f"{seed}.png")
    (tmp_path / "pictures" / "torn.png").write_text("no picture")
    out = tmp_path / "codes.png"
    words = ("--codebook", tmp_path / "pictures", "--budget", 4, "--out", out, "--json")
    assert inspect(*words, model=tiny_models) == 1
    said = capsys.readouterr()
    assert "torn.png: not an image" in said.err
    found = json.loads(said.out)
    assert (found["pictures"], found["tokens"]["total"]) == (3, 12)
    with Image.open(out) as sheet:
        assert sheet.height >= min(found["codes_used"], 16) * 64


def test_statistics_of_a_token_folder(token_folder, capsys):
    assert inspect(token_folder, "--json") == 0
    found = facts(capsys)
    assert found["pictures"] == 3
    assert found["lengths"] == {"2": 2, "4": 1}
    assert (found["codes_used"], found["dead_codes"]) == (5, 59)
    # 5: 3 of 8, 7: 2 of 8, and three codes once
    shares = np.array([3, 2, 1, 1, 1]) / 8
    assert found["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    cells = math.log2(math.comb(64, 4)) + 2 * math.log2(math.comb(64, 2))
    assert found["bits_per_pixel"] == pytest.approx((8 * 6 + cells) / 600)

    assert inspect(token_folder) == 0
    text = capsys.readouterr().out
    for words in ("codes used", "5 of 64", "bits per pixel", "0.149", "█"):
        assert words in text


def test_token_files_and_shards_give_the_same_statistics(token_folder, tmp_path, capsys):
    files = sorted(token_folder.rglob("*.tokens"))
    with ShardWriter(tmp_path / "shards", samples_per_shard=2) as writer:
        for file in files:
            writer.write(file.stem, {"tokens": file.read_bytes(), "png": png_bytes(picture(0))})
    answers = []
    for words in ([token_folder], files, [tmp_path / "shards"], sorted((tmp_path / "shards").iterdir())):
        assert inspect(*words, "--json") == 0
        answers.append(facts(capsys))
    shards = [answer.pop("shards", []) for answer in answers]
    assert [[(each["samples"], each["images"]) for each in one] for one in shards] == [
        [],
        [],
        *2 * [[(2, 2), (1, 1)]],
    ]
    assert all(answer == answers[0] for answer in answers)


def test_a_raw_shard_is_shown_as_it_is_understood(tmp_path, capsys):
    members = {
        "a.jpg": b"P",
        "a.txt": b"a cat",
        "b.jpg": b"P",
        "b.json": b'{"Label": "a dog"}',
        "c.x.jpg": b"P",
    }
    with tarfile.open(tmp_path / "raw.tar", "w") as archive:
        for name, blob in {**members, "._a.jpg": b"", "a.npy": b"1"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))
    assert inspect(tmp_path / "raw.tar") == 1
    said = capsys.readouterr()
    assert said.err == "pictish: raw.tar/*.npy: 1 member of an unknown kind\n"
    assert said.out.splitlines()[:3] == [
        "raw.tar: 3 samples, 3 images, 1 caption",
        "  members: 3 .jpg, 1 .txt, 1 .json",
        "  for training: 1 captioned image",
    ]
    assert "not for training: 1 sample, has no caption: no text, nor caption or another" in said.out
    assert "known field in its JSON, which has Label (b)" in said.out
    assert "ignored: 1 hidden member" in said.out
    assert inspect(tmp_path / "raw.tar", "--json", "--caption-key", "Label") == 1
    (shard,) = facts(capsys)["shards"]
    assert (shard["kinds"], shard["captions"]) == ({"captioned image": 1}, 1)
    assert inspect(tmp_path) == 1
    (tmp_path / "raw.tar").write_bytes(b"no tar" * 99)
    assert inspect(tmp_path / "raw.tar") == 1
    assert "raw.tar: " in capsys.readouterr().err


def test_a_damaged_token_file_is_named_and_not_counted(token_folder, capsys):
    blob = bytearray((token_folder / "sub" / "0.tokens").read_bytes())
    blob[-1] ^= 1
    (token_folder / "sub" / "0.tokens").write_bytes(bytes(blob))
    assert inspect(token_folder, "--json") == 1
    said = capsys.readouterr()
    assert "sub/0.tokens: damaged token file" in said.err
    assert json.loads(said.out)["pictures"] == 2


def test_users_mistakes_are_one_line(image, token_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    other = token_folder / "other.tokens"
    cases = {
        "no tokens in this folder": [tmp_path / "empty"],
        "there is no such file": [tmp_path / "absent"],
        "No such file": [tmp_path / "absent.png"],
        "expected a single image, got 2 inputs": [image, image],
        "--budget applies to images": [token_folder, "--budget", 3],
        "--out applies to images": [token_folder, "--out", "x.png"],
        "--steps applies to images": [token_folder, "--steps", 0],
        "--steps 0 does not apply to --codebook": [image, "--codebook", "--steps", 0],
        "--budget 3 and --threshold 0.5 exclude each other": [image, "--budget", 3, "--threshold", 0.5],
        "--budget 3 and --quality 20.0 exclude each other": [image, "--budget", 3, "--quality", 20],
        "--quality applies to images": [token_folder, "--quality", 20],
        "ends in .png": [image, "--out", "drawing.jpg"],
        "two tokenizers": [token_folder, other],
    }
    other.write_bytes(tokens([1], tokenizer="ba9876543210").to_bytes())
    for expected, words in cases.items():
        assert inspect(*words) == 2, expected
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("pictish: ")
        assert expected in line
    assert not list(tmp_path.glob("*-inspect.png"))


def test_a_broken_picture_is_one_line(tiny_models, tmp_path, capsys):
    (tmp_path / "torn.png").write_text("no picture")
    assert inspect(tmp_path / "torn.png", "--out", tmp_path / "x.png", model=tiny_models) == 2
    assert "torn.png: not an image" in capsys.readouterr().err


def test_histogram_of_few_lengths_has_a_line_each():
    assert histogram_lines({3: 4, 5: 8}, width=4) == ["3  4  ██", "4  0", "5  8  ████"]


def test_histogram_of_many_lengths_is_binned_and_loses_none():
    lines = histogram_lines({length: length for length in range(1, 65)})
    assert len(lines) == 16
    assert lines[0].split()[:4] == ["1", "to", "4", "10"]
    assert sum(int(line.split()[3]) for line in lines) == sum(range(1, 65))
    assert max(line.count("█") for line in lines) == 40


def test_histogram_shows_a_trace_of_a_rare_length():
    assert histogram_lines({1: 100_000, 2: 1}, width=4)[1] == "2        1  ▏"
