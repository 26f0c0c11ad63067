"""Tables of generated images, GenEval's layout, and prompts from tables: no model is needed."""

import base64
import json
from pathlib import Path

import pytest
from PIL import Image

from pictish import cli
from pictish.commands.generate import _prompts_in
from pictish.data.provenance import Origin, png_with_origin
from pictish.data.tokens import TokenizedImage

TOKENS = TokenizedImage([3, 1, 2], [0, 4, 9], (4, 4), (64, 64), "0123456789ab", 64)
UNSET = (
    *("guidance", "image_guidance", "temperature", "top_k", "top_p", "min_p", "min_tokens", "max_tokens"),
    *("steps", "pixel_guidance", "scheduler", "size"),
)


@pytest.fixture
def generated(tmp_path) -> Path:
    """Two images of one prompt and one of another."""
    folder = tmp_path / "generated"
    folder.mkdir()
    for name, prompt, seed in (("b-1", "a bench", 1), ("a-0", "a bench", 0), ("cow-0", "a cow", 0)):
        origin = Origin(
            command="generate",
            prompt=prompt,
            seed=seed,
            pictish="0.1.0",
            tokenizer="0123456789ab",
            lm="1" * 12,
            decoder="2" * 12,
            tokens=base64.b64encode(TOKENS.to_bytes()).decode(),
            **dict.fromkeys(UNSET),
        )
        (folder / f"{name}.png").write_bytes(png_with_origin(Image.new("RGB", (8, 8), (seed, 0, 0)), origin))
    return folder


def write(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_the_table_has_a_row_for_each_image(generated, tmp_path, capsys):
    assert cli.main(["data", "results", str(generated)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["file"], row["prompt"], row["seed"], row["codes"]) for row in rows] == [
        ("a-0.png", "a bench", 0, 3),
        ("b-1.png", "a bench", 1, 3),
        ("cow-0.png", "a cow", 0, 3),
    ]
    assert rows[0]["lm"] == "1" * 12
    assert "tokens" not in rows[0]
    table = tmp_path / "results.jsonl"
    assert cli.main(["data", "results", str(generated), "--out", str(table)]) == 0
    assert len(table.read_text().splitlines()) == 3
    assert cli.main(["data", "results", str(generated), "--out", str(table)]) == 2


def test_images_that_do_not_say_how_they_were_drawn_are_named(generated, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(generated / "other.png")
    assert cli.main(["data", "results", str(generated)]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert "other.png: does not say how it was drawn" in err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert cli.main(["data", "results", str(empty)]) == 2


def test_the_layout_of_geneval(generated, tmp_path, capsys):
    entries = [{"tag": "single_object", "prompt": "a cow"}, {"tag": "single_object", "prompt": "a bench"}]
    metadata, out = write(tmp_path / "metadata.jsonl", *entries), tmp_path / "out"
    assert cli.main(["data", "geneval", str(generated), str(metadata), str(out)]) == 0
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == [
        "00000/metadata.jsonl",
        "00000/samples/00000.png",
        "00001/metadata.jsonl",
        "00001/samples/00000.png",
        "00001/samples/00001.png",
    ]
    assert json.loads((out / "00001" / "metadata.jsonl").read_text()) == entries[1]
    for seed, name in enumerate(("a-0.png", "b-1.png")):
        sample = out / "00001" / "samples" / f"{seed:05}.png"
        assert sample.read_bytes() == (generated / name).read_bytes()
    assert "3 images of 2 prompts" in capsys.readouterr().out
    assert cli.main(["data", "geneval", str(generated), str(metadata), str(out)]) == 2


def test_prompts_and_images_without_each_other_are_named(generated, tmp_path, capsys):
    metadata = write(tmp_path / "metadata.jsonl", {"prompt": "a bench"}, {"prompt": "a kite"})
    assert cli.main(["data", "geneval", str(generated), str(metadata), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "no image of 'a kite'" in said
    assert "cow-0.png: of none of the prompts" in said
    assert (tmp_path / "out" / "00001" / "metadata.jsonl").is_file()


@pytest.mark.parametrize("line", ["[]", "{", '{"prompt": 1}', '{"text": "a"}'])
def test_damaged_metadata_is_refused(generated, tmp_path, line, capsys):
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text('{"prompt": "a"}\n\n' + line)
    assert cli.main(["data", "geneval", str(generated), str(metadata), str(tmp_path / "out")]) == 2
    assert "metadata.jsonl, line 3: not a JSON object with a prompt" in capsys.readouterr().err


def test_prompts_are_read_from_lines_and_tables(tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("a cow\n\n a bench \n")
    table = tmp_path / "prompts.csv"
    table.write_text('id,prompt\n1,a cow\n2,"a bench, red"\n')
    assert _prompts_in(lines) == ["a cow", "a bench"]
    assert _prompts_in(table) == ["a cow", "a bench, red"]
    assert _prompts_in(write(tmp_path / "p.jsonl", {"prompt": "a cow", "tag": 1})) == ["a cow"]
    table.write_text("id,prompt\n1,a cow\n2,\n")
    with pytest.raises(ValueError, match="row 2 has no prompt"):
        _prompts_in(table)
    table.write_text("id,text\n1,a cow\n")
    with pytest.raises(ValueError, match="row 1 has no prompt"):
        _prompts_in(table)
