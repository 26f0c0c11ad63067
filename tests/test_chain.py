"""The whole chain at tiny size by the command line, killed on the way: train, tokenize, decode, measure.

Only what is killed runs in a process of its own: each start costs seconds of imports.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pictish.cli import main
from pictish.data.tokens import TokenizedImage
from tests.shards import drawn_picture, told_picture, write_described_shards, write_shard

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def pictish(*words: str | Path, code: int = 0) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main([str(word) for word in words])
    assert found == code, out.getvalue() + err.getvalue()
    return out.getvalue()


def kill_after(condition, *words: str | Path) -> None:
    """Start a command and SIGKILL it as soon as `condition()` holds."""
    command = [sys.executable, "-m", "pictish", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """Shards, an image folder, and a model trained twice: undisturbed (whole), killed once (killed)."""
    folder = tmp_path_factory.mktemp("chain")
    write_shard(folder / "train.tar", 120)
    write_shard(folder / "validation.tar", 20, first=1000)
    (folder / "pictures" / "sub").mkdir(parents=True)
    for number in range(12):
        place = folder / "pictures" / ("sub" if number % 2 else "") / f"drawn {number}.png"
        drawn_picture(2000 + number).resize((60, 40)).save(place)
    data = [f"data.train=[{folder / 'train.tar'}]", f"data.validation=[{folder / 'validation.tar'}]"]
    changes = [*data, "data.views=2", "checkpoint_every=10"]
    for run in ("whole", "killed"):
        words = ["train", "tokenizer", "tiny/tokenizer", *changes, "--run", folder / run, "--quiet"]
        if run == "killed":
            kill_after((folder / run / "checkpoints" / "step-00000050").exists, *words)  # behind k-means
        pictish(*words)
    words = [f"tokenizer={folder / 'whole' / 'model'}", *data]
    pictish("train", "decoder", "tiny/preview", *words, "--run", folder / "preview", "--quiet")
    os.makedirs(folder / "model")  # noqa: PTH103
    (folder / "whole" / "model").rename(folder / "model" / "tokenizer")
    (folder / "preview" / "model").rename(folder / "model" / "decoder")
    return folder


def metrics(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "pictures_per_second"} for row in rows]


def test_a_killed_run_is_bit_equal_to_an_undisturbed_one(chain):
    assert metrics(chain / "killed") == metrics(chain / "whole")
    for name in ("config.yaml", "model.safetensors"):
        killed = (chain / "killed" / "model" / name).read_bytes()
        assert killed == (chain / "model" / "tokenizer" / name).read_bytes()
    errors = [row["mse"] for row in metrics(chain / "whole") if "mse" in row]
    assert errors[-1] < 0.6 * errors[0]


def test_pictures_become_tokens_and_pictures_again(chain, tmp_path):
    model = ["--model", chain / "model", "--quiet"]
    pictish("tokenize", chain / "pictures", tmp_path / "tokens", *model)
    pictish("detokenize", tmp_path / "tokens", tmp_path / "back", *model)
    names = sorted(path.relative_to(chain / "pictures") for path in (chain / "pictures").rglob("*.png"))
    assert sorted(path.relative_to(tmp_path / "back") for path in (tmp_path / "back").rglob("*.png")) == names
    with Image.open(tmp_path / "back" / names[0]) as picture:
        assert picture.width / picture.height == pytest.approx(1.5, abs=0.02)


def test_a_diffusion_decoder_draws_the_same_by_the_same_seed(chain, tmp_path):
    data = [f"data.train=[{chain / 'train.tar'}]", f"data.validation=[{chain / 'validation.tar'}]"]
    tokenizer = chain / "model" / "tokenizer"
    words = ["train", "decoder", "tiny/decoder", f"tokenizer={tokenizer}", *data, "--run", tmp_path / "run"]
    pictish(*words, "--quiet")
    losses = [row["loss"] for row in metrics(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer").symlink_to(tokenizer)
    (tmp_path / "run" / "model").rename(tmp_path / "model" / "decoder")
    model = ["--model", tmp_path / "model", "--quiet"]
    pictish("tokenize", chain / "pictures", tmp_path / "tokens", *model)
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        pictish("detokenize", tmp_path / "tokens", tmp_path / name, "--seed", seed, *model)
    drawn = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png"))
    assert len(drawn) == 12
    for path in drawn:
        one, again, other = ((tmp_path / name / path).read_bytes() for name in ("one", "again", "other"))
        assert one == again != other


def test_it_can_be_measured_and_looked_at(chain, tmp_path):
    model = ["--model", chain / "model", "--quiet"]
    pictish("evaluate", "tokenizer", chain / "pictures", "--out", tmp_path / "numbers", *model)
    assert json.loads((tmp_path / "numbers" / "tokenizer.json").read_text())
    picture = sorted((chain / "pictures").glob("*.png"))[0]
    pictish("inspect", picture, "--out", tmp_path / "looked.png", *model)
    with Image.open(tmp_path / "looked.png") as sheet:
        assert sheet.width > 300


def test_another_config_in_the_same_run_is_refused(chain):
    words = ["train", "tokenizer", "tiny/tokenizer", "batch_size=4", "--run", chain / "killed"]
    pictish(*words, code=2)


LM_SETTINGS = [
    "model.features=true",
    "data.length=192",
    "data.validation={}",
    "stages=[{name: all, steps: 200, learning_rate: 6.0e-3, warmup: 10}]",
    "log_every=10",
    "checkpoint_every=100",
    "sample_every=200",
    "samples=[a red disc, a blue bar]",
]


@pytest.fixture(scope="module")
def speaking(chain) -> Path:
    """The chain's model with a language model beside it, trained on told images, tokenized or raw."""
    write_described_shards(chain / "told", 200)
    model = ["--model", chain / "model", "--quiet"]
    words = ["--format", "shards", *model]
    pictish("tokenize", chain / "told" / "pairs.tar", chain / "tokens", *words)
    sources = (
        f"pictures: {{paths: [{chain}/tokens/pairs.tar], caption: 0.4}}",
        f"edits: {{paths: [{chain}/told/edits.tar]}}",
        f"questions: {{paths: [{chain}/told/questions.tar], weight: 0.5}}",
        f"seen: {{paths: [{chain}/told/pairs.tar], caption: 1, continuous: 1, weight: 0.5}}",
    )
    changes = [f"tokenizer={chain}/model", f"data.train={{{', '.join(sources)}}}", *LM_SETTINGS]
    command = ["train", "lm", "tiny/lm", *changes, "--run", chain / "lm", "--quiet"]
    kill_after((chain / "lm" / "checkpoints" / "step-00000100").exists, *command)
    pictish(*command)
    (chain / "lm" / "model").rename(chain / "model" / "lm")
    return chain


def test_the_language_model_learns(speaking):
    rows = [json.loads(line) for line in (speaking / "lm" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 200
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert {"loss_caption", "loss_drawing", "loss_edit", "loss_answer"} <= rows[-1].keys()
    with Image.open(speaking / "lm" / "samples" / "step-00000200.png") as sheet:
        assert sheet.size == (256, 128)


def test_it_draws_edits_and_describes(speaking, tmp_path):
    model = ["--model", speaking / "model"]
    told_picture("red", "bar").save(tmp_path / "bar.png")
    told_picture("blue", "disc").resize((96, 48)).save(tmp_path / "disc.png")
    words = ["generate", "a red disc", "a blue bar", "--count", 2, "--save-tokens"]
    pictish(*words, "--out", tmp_path / "drawn", *model)
    names = [f"{slug}-{seed}" for slug in ("a-blue-bar", "a-red-disc") for seed in (0, 1)]
    assert sorted(path.stem for path in (tmp_path / "drawn").glob("*.png")) == names
    pictish("detokenize", tmp_path / "drawn", tmp_path / "back", *model, "--quiet")
    for name in names:
        drawn, back = (tmp_path / folder / f"{name}.png" for folder in ("drawn", "back"))
        with Image.open(drawn) as one, Image.open(back) as other:
            assert one.tobytes() == other.tobytes(), "the tokens beside a picture give that picture"
    pictish("generate", "a red disc", "--save-tokens", "--out", tmp_path / "again", *model)
    first, again = (tmp_path / folder / "a-red-disc-0.tokens" for folder in ("drawn", "again"))
    assert TokenizedImage.from_bytes(first.read_bytes()) == TokenizedImage.from_bytes(again.read_bytes())
    pictish("generate", "--like", tmp_path / "drawn" / "a-blue-bar-1.png", "--out", tmp_path / "like", *model)
    drawn, like = (tmp_path / folder / "a-blue-bar-1.png" for folder in ("drawn", "like"))
    assert drawn.read_bytes() == like.read_bytes()
    pictish("edit", tmp_path / "disc.png", "make it green", "--out", tmp_path / "edited", *model)
    (edited,) = (tmp_path / "edited").glob("*.png")
    with Image.open(edited) as picture:
        assert picture.width == 2 * picture.height
    pictures = ["--image", tmp_path / "bar.png", "--image", tmp_path / "disc.png"]
    pictish("generate", "both", *pictures, "--out", tmp_path / "mixed", *model)
    assert len(list((tmp_path / "mixed").glob("*.png"))) == 1
    for looking in ([], ["--features"]):
        assert pictish("describe", tmp_path / "bar.png", *looking, *model).strip()
    assert pictish("describe", tmp_path / "bar.png", "which colour?", *model).strip()


def test_what_cannot_be_drawn_is_one_line(speaking, tmp_path):
    model = ["--model", speaking / "model", "--out", tmp_path / "drawn"]
    pictish("generate", "", *model, code=2)
    pictish("generate", "a red disc " * 100, *model, code=2)
    pictish("generate", "a [IMG]<code-00001>[/IMG] disc", *model)
    (drawn,) = (tmp_path / "drawn").iterdir()
    before = drawn.stat().st_mtime_ns
    pictish("generate", "a [IMG]<code-00001>[/IMG] disc", *model)  # it is there already
    pictish("generate", "a [IMG]<code-00001>[/IMG] disc", "--temperature", "0.9", *model, code=2)
    assert drawn.stat().st_mtime_ns == before
    assert len(list((tmp_path / "drawn").iterdir())) == 1
