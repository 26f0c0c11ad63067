"""The whole chain at tiny size by the command line, killed on the way: train, tokenize, decode, measure."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.shards import drawn_picture, write_shard

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def pictish(*words: str | Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "pictish", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


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
    """Shards, a picture folder, and a model trained twice: undisturbed (whole), killed (killed)."""
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
            for step in (10, 50):
                checkpoint = folder / run / "checkpoints" / f"step-{step:08d}"
                kill_after(checkpoint.exists, *words)
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


def test_a_run_killed_twice_is_bit_equal_to_an_undisturbed_one(chain):
    assert metrics(chain / "killed") == metrics(chain / "whole")
    for name in ("config.yaml", "model.safetensors"):
        killed = (chain / "killed" / "model" / name).read_bytes()
        assert killed == (chain / "model" / "tokenizer" / name).read_bytes()
    cosine = [row["validation_cosine"] for row in metrics(chain / "whole") if "validation_cosine" in row]
    assert cosine[-1] < 0.8


def test_pictures_become_tokens_and_pictures_again(chain, tmp_path):
    model = ["--model", chain / "model", "--quiet"]
    pictish("tokenize", chain / "pictures", tmp_path / "tokens", *model)
    pictish("detokenize", tmp_path / "tokens", tmp_path / "back", *model)
    names = sorted(path.relative_to(chain / "pictures") for path in (chain / "pictures").rglob("*.png"))
    assert sorted(path.relative_to(tmp_path / "back") for path in (tmp_path / "back").rglob("*.png")) == names
    with Image.open(tmp_path / "back" / names[0]) as picture:
        assert picture.width / picture.height == pytest.approx(1.5, abs=0.02)


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
