"""`pictish train model` on a dozen drawn images: looked at, trained, cut off, resumed; then used.

Used also as the documents say: all that README.md prints, and the section of docs/training.md, is run.
"""

import itertools
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pictish.cli import main
from pictish.configs import load
from pictish.recipes.own import rehearsal
from pictish.recipes.own.config import STAGES
from pictish.training.checkpoint import latest_checkpoint
from tests.shards import COLOURS, SHAPES, told_picture
from tests.test_readme import commands, text_of
from tests.tree import ROOT

SHORT = [
    "tokenizer.phases=[{name: merge, steps: 3, quantize: false, warmup: 0}, "
    "{name: quantize, steps: 5, quantize: true, warmup: 0}]",
    "tokenizer.checkpoint_every=2",
    "tokenizer.keep_checkpoints=9",
    "decoder.steps=6",
    "decoder.warmup=0",
    "decoder.checkpoint_every=2",
    "lm.stages=[{name: all, steps: 4, warmup: 0}]",
    "samples=2",
]


def write_pictures(folder: Path) -> Path:
    folder.mkdir()
    for number, (colour, shape) in enumerate(itertools.product(COLOURS, SHAPES)):
        for copy in (0, 1):
            picture = told_picture(colour, shape, 32)
            picture.putpixel((copy, number), (0, 0, 0))
            picture.save(folder / f"{number}-{copy}.png")
            (folder / f"{number}-{copy}.txt").write_text(f"a {colour} {shape}")
    edits = [{"source": "0-0.png", "instruction": "make it a bar", "target": "1-0.png"}]
    edits.append({**edits[0], "target": "none.png"})
    questions = [
        {"image": f"{number}-0.png", "question": "which colour?", "answer": colour}
        for number, colour in ((0, "red"), (2, "green"), (4, "blue"))
    ]
    (folder / "edits.jsonl").write_text("\n".join(map(json.dumps, edits)))
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained with a cut in the decoder's training, and what the three calls returned."""
    home = tmp_path_factory.mktemp("own")
    pictures, out = write_pictures(home / "pictures"), home / "model"
    words = ["train", "model", str(pictures), str(out), *SHORT, "--size", "tiny", "--val", "0.2"]
    words += ["--workers", "0", "--quiet"]
    codes = [main([*words, "--dry-run"])]
    assert not (out / "runs" / "tokenizer").exists()
    assert not (out / "runs" / "rehearsal").exists()
    measured = rehearsal.Measured(dict.fromkeys(STAGES, 0.0), 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "rehearse", lambda *_: measured)
        patch.setattr("pictish.commands.train_model._Line", Cut)
        codes.append(main(words))
    assert latest_checkpoint(out / "runs" / "decoder").name == "step-00000004"
    codes.append(main(words))
    return home, words, codes


class Cut:
    """Ctrl-C behind the fifth step of the decoder."""

    def __init__(self, stage, *_):
        self.stage = stage

    def __call__(self, done, total):
        if (self.stage, done) == ("decoder", 5):
            raise KeyboardInterrupt


def steps(out, stage):
    return [json.loads(line)["step"] for line in (out / "runs" / stage / "metrics.jsonl").open()]


def test_it_looks_trains_and_resumes(trained):
    home, _, codes = trained
    assert codes == [1, 130, 1], "the broken picture is left out, which the exit code says"
    out = home / "model"
    assert {"tokenizer", "decoder", "lm", "README.md", "samples.png", "evaluation.json"} <= {
        path.name for path in out.iterdir()
    }
    assert load(out / "train.yaml")["decoder"]["steps"] == 6
    assert "# " in (out / "train.yaml").read_text()
    for stage, last in (("tokenizer", 8), ("decoder", 6), ("lm", 4)):
        assert steps(out, stage)[-1] == last
    numbers = json.loads((out / "evaluation.json").read_text())
    assert numbers["held_out_pictures"] == 2
    assert 3 < numbers["psnr_preview"] < 60
    judged = numbers["words_to_pictures"]
    assert judged["candidates"] == 2
    assert judged["chance"]["hit@1"] >= 0.5
    assert 0 <= judged["drawn"]["hit@1"]["mean"] <= 1
    assert judged["reconstructed"].keys() == {"hit@1"}
    assert 0 <= numbers["captions"]["token_f1"]["low"] <= numbers["captions"]["token_f1"]["high"] <= 1
    card = (out / "README.md").read_text()
    assert "12 images, 12 with captions (from `name.txt`), 1 edit, 3 questions, 2 left out" in card
    for kind in ("edits", "questions"):
        assert list((out / "tokens").glob(f"*/{kind}-000000.tar"))
    assert "| text to image, among 2 held-out images | hit@1 |" in card
    assert "| F1 of their words with the image's caption | " in card
    with Image.open(out / "samples.png") as sheet:
        assert sheet.height > 200


def test_another_call_trains_nothing(trained, monkeypatch):
    home, words, _ = trained
    before = {path: path.read_bytes() for path in (home / "model").rglob("*.safetensors")}
    monkeypatch.setattr("pictish.commands.train_model._train", None)
    assert main(words) == 1
    assert before == {path: path.read_bytes() for path in (home / "model").rglob("*.safetensors")}


def test_the_model_generates(trained, tmp_path, monkeypatch):
    out = trained[0] / "model"
    (tmp_path / "prompts.txt").write_text("a red disc\n\n  a blue bar \n")
    words = ["generate", "--prompts", str(tmp_path / "prompts.txt"), "--model", str(out), "--quiet"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    names = ["a-blue-bar-0.png", "a-red-disc-0.png"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    parts = ["--lm", str(out / "runs" / "lm"), "--decoder", str(out / "decoder")]
    assert main([*words, *parts, "--out", str(tmp_path / "two")]) == 0
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_checkpoints_are_exported_as_the_run_saved_them(trained, tmp_path, capsys):
    out = trained[0] / "model"
    for stage in STAGES:
        assert main(["model", "export", str(out / "runs" / stage), str(tmp_path / stage), "--quiet"]) == 0
        for name in ("config.yaml", "model.safetensors"):
            assert (tmp_path / stage / name).read_bytes() == (out / stage / name).read_bytes(), stage
    run = str(out / "runs" / "tokenizer")
    assert main(["model", "export", run, str(tmp_path / "earlier"), "--step", "6", "--quiet"]) == 0
    earlier = (tmp_path / "earlier" / "model.safetensors").read_bytes()
    assert earlier != (out / "tokenizer" / "model.safetensors").read_bytes()
    assert main(["model", "export", run, str(tmp_path / "first"), "--step", "2"]) == 2
    assert "quantization has not begun" in capsys.readouterr().err
    assert main(["model", "export", run, str(tmp_path / "none"), "--step", "5"]) == 2
    assert "its checkpoints are of steps 2, 4, 6, 8" in capsys.readouterr().err
    assert (
        sorted(path.name for path in (out / "runs" / "tokenizer").iterdir() if path.name.startswith("."))
        == []
    )


def test_parts_are_assembled_and_shown(trained, tmp_path, capsys):
    out, model = trained[0] / "model", tmp_path / "model"
    parts = ["--tokenizer", str(out), "--lm", str(out / "lm"), "--decoder", str(out / "runs" / "decoder")]
    assert main(["model", "assemble", str(model), *parts, "--quiet"]) == 0
    assert main(["model", "info", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(facts) == ["decoder", "lm", "tokenizer"]
    assert facts["lm"]["tokenizer"] == facts["decoder"]["tokenizer"] == facts["tokenizer"]["fingerprint"]
    assert facts["tokenizer"]["weights"] > 1000
    assert main(["model", "assemble", str(model), *parts, "--quiet"]) == 0, (
        "what is there already may be given"
    )
    shutil.copytree(out / "decoder", tmp_path / "other")
    with (tmp_path / "other" / "config.yaml").open("a") as file:
        file.write("# another decoder\n")
    other = ["--decoder", str(tmp_path / "other")]
    assert main(["model", "assemble", str(model), *other]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["model", "assemble", str(model), *other, "--overwrite", "--quiet"]) == 0
    assert main(["model", "assemble", str(tmp_path / "mixed"), *parts[:2], "--lm", "starter"]) == 2
    assert "reads codes of tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "mixed").exists()
    assert main(["model", "info", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--val", "0.3"], "was made from"),
        (["--caption-key", "text"], "was made from"),
        (["decoder.steps=7"], "has other settings than"),
        (["--from", "starter"], "has other settings than --from starter"),
    ],
)
def test_another_model_in_the_same_folder_is_refused(trained, changes, said, capsys):
    assert main([*trained[1], *changes]) == 2
    assert said in capsys.readouterr().err


def test_what_cannot_be_trained_is_said_at_once(tmp_path, capsys):
    pictures = write_pictures(tmp_path / "pictures")
    for text in pictures.glob("*.txt"):
        text.unlink()
    for out, said in (
        (tmp_path / "out", "no captions found for 12 images; write name.txt beside name.jpg"),
        (pictures / "out", "lies among the inputs"),
    ):
        assert main(["train", "model", str(pictures), str(out), "--size", "tiny", "--workers", "0"]) == 2
        assert said in capsys.readouterr().err
    assert main(["tokenize", str(pictures), str(pictures)]) == 2
    assert "lies among the inputs" in capsys.readouterr().err


def test_a_configuration_is_shown(capsys):
    assert main(["config", "show"]) == 0
    assert "small/lm" in capsys.readouterr().out.splitlines()
    assert main(["config", "show", "tiny/decoder", "batch_size=3"]) == 0
    shown = capsys.readouterr().out
    assert "\nbatch_size: 3\n" in shown
    assert "# steps between grids of images; 0: none" in shown


def test_raw_shards_alone(tmp_path, capsys):
    pictures, out = write_pictures(tmp_path / "pictures"), tmp_path / "shards"
    words = ["data", "shards", str(pictures), str(out), "--val", "0.25", "--workers", "0"]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "12 images, 12 with captions from name.txt (12)\n" in said
    assert "  1 edit from edits.jsonl\n  3 questions from questions.jsonl\n" in said
    assert "left out, names none.png, no image of the source: edits.jsonl line 2" in said
    assert "broken.jpg" in said
    assert "held out for validation: 3 images" in said
    shards = {path.relative_to(out).as_posix() for path in out.rglob("captioned-*.tar")}
    assert shards == {"train/captioned-000000.tar", "validation/captioned-000000.tar"}
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


def documented(name, section=None):
    """The commands of a document, or of a section of it, as words."""
    text = text_of(name)
    if section is not None:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return commands(text)


@pytest.fixture
def elsewhere(trained, tmp_path, monkeypatch):
    """A folder with the names that the documents use, where the trained model is OUT."""
    home = trained[0]
    links = {"docs": ROOT / "docs", "OUT": home / "model", "PICTURES": home / "pictures"}
    for name, place in {**links, "runs": home / "model" / "runs"}.items():
        (tmp_path / name).symlink_to(place)
    (tmp_path / "prompts.txt").write_text("a red disc\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_runs_as_printed(trained, elsewhere):
    """With this tiny model in place of the starter's."""
    lines = [words for words in documented("README.md") if words[0] != "COMMAND"]
    ran = 0
    for words in lines:
        if words[:2] == ["train", "model"]:
            assert words == ["train", "model", "PICTURES", "OUT"]  # what `trained` did
            continue
        if words[0] in ("serve", "ui") or words[:2] == ["model", "push"]:  # tested with clients and a hub
            continue
        model = [] if "--model" in words else ["--model", "OUT"]
        assert main([*words, *model]) == 0, words
        ran += 1
    assert ran >= 10
    made = {path.name for path in elsewhere.iterdir()}
    assert {"four.png", "generated", "edited", "again", "tokens", "pictures", "few", "evaluation"} <= made
    assert len(list((elsewhere / "generated").glob("a-red-apple-noto-style-*.png"))) == 4


def test_the_section_on_own_pictures_runs_as_printed(trained, elsewhere):
    ran = []
    for words in documented("docs/training.md", "A model of your own images"):
        if words[:2] == ["train", "model"]:
            continue
        if words[:2] == ["data", "shards"]:
            words, code = ["data", "shards", "PICTURES", "shards"], 1  # an image and an edit are left out
        elif words[:2] == ["model", "export"]:
            assert words[2:] == ["runs/decoder", "OUT/decoder", "--step", "600"]
            words, code = [*words[:3], "exported", "--step", "4"], 0  # whose checkpoint is there
        else:
            code = 0
        assert main(words) == code, words
        ran.append(" ".join(words[:2]))
    assert {"data shards", "model info", "model assemble", "model export"} < set(ran)
    assert (elsewhere / "MODEL" / "lm" / "config.yaml").is_file()
    assert (elsewhere / "generated" / "a-red-disc-0.png").is_file()
