"""`pictish import lavit`: what lies in OUT, what works with it, and every way a checkpoint can be wrong."""

import builtins
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from pictish.cli import main
from pictish.data.tokens import TokenizedImage
from pictish.io.files import temp_path
from pictish.pipelines import importing as pipeline
from tests import lavit


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lavit") / "checkpoint"
    lavit.write_tokenizer(folder)
    return folder


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """A checkpoint to be spoilt."""
    shutil.copytree(checkpoint.parent, tmp_path / "source")
    return tmp_path / "source" / checkpoint.name


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for name, size in (("a.png", (70, 120)), ("b.png", (900, 400))):
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def run(source: Path, out: Path, *more: str) -> int:
    parts = () if "--part" in more else ("--part", "tokenizer", "--part", "understanding")
    return main(["import", "lavit", str(source), str(out), *parts, *more])


@pytest.fixture(scope="session")
def model(checkpoint, pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("models") / "new" / "lavit"
    assert run(checkpoint, out, "--pictures", str(pictures), "--quiet") == 0
    return out


def test_out_is_a_model_folder_with_a_card(model):
    assert sorted(path.name for path in model.iterdir()) == ["README.md", "tokenizer", "understanding"]
    assert sorted(path.name for path in model.parent.iterdir()) == ["lavit"]
    card = (model / "README.md").read_text("utf-8")
    assert "licence" in card
    assert "on 2 images" in card
    assert "% of " in card
    with safe_open(model / "tokenizer" / "model.safetensors", "pt") as file:
        assert file.get_slice("merger.norm.weight").get_dtype() == "BF16"


def test_tokenizing_and_inspecting_take_it_as_any_other(model, pictures, tmp_path, capsys):
    for out in ("one", "two"):
        assert main(["tokenize", str(pictures), str(tmp_path / out), "--model", str(model), "--quiet"]) == 0
    blobs = [(tmp_path / out / "a.tokens").read_bytes() for out in ("one", "two")]
    assert blobs[0] == blobs[1]
    token = TokenizedImage.from_bytes(blobs[0])
    assert (token.grid, token.codebook_size) == ((lavit.SIDE, lavit.SIDE), lavit.CODES)
    arguments = ["inspect", str(pictures / "a.png"), "--model", str(model), "--out", str(tmp_path / "x.png")]
    assert main(arguments) in (0, 2)  # there is no decoder to draw with


def test_lavits_draw_depends_on_the_seed_and_on_no_other_picture(model, pictures, tmp_path):
    shutil.copy(pictures / "a.png", tmp_path / "a.png")
    both, alone = str(pictures), str(tmp_path / "a.png")
    for out, source, seed in (("x", both, "5"), ("y", alone, "5"), ("z", alone, "6")):
        more = ["--gumbel", "--seed", seed, "--model", str(model), "--quiet"]
        assert main(["tokenize", source, str(tmp_path / out), *more]) == 0
    x, y, z = ((tmp_path / out / "a.tokens").read_bytes() for out in "xyz")
    assert x == y != z
    assert main(["tokenize", both, str(tmp_path / "w"), "--gumbel", "--sample", "--model", str(model)]) == 2


def test_large_pictures_are_squashed_in_one_step(model, pictures, tmp_path):
    """As torchvision does; our own tokenizers take a short cut that gives other pixels."""
    from pictish.data.images import fit_square, load_image
    from pictish.tokenizer.dynamic import Tokenizer

    tokenizer = Tokenizer.from_folder(model)
    picture = load_image(pictures / "b.png")
    slow = np.asarray(picture.resize((tokenizer.image_size,) * 2, Image.Resampling.BICUBIC))
    assert np.array_equal(tokenizer.resize(picture), slow)
    assert not np.array_equal(fit_square(picture, tokenizer.image_size), slow)
    more = ["--model", str(model), "--quiet"]
    assert main(["tokenize", str(pictures), str(tmp_path / "t"), *more, "--workers", "1"]) == 0
    (expected,) = tokenizer.tokenize([picture])
    assert (tmp_path / "t" / "b.tokens").read_bytes() == expected.to_bytes()


def test_gather_is_a_mode_with_other_codes_and_another_fingerprint(checkpoint, model, tmp_path):
    from pictish.io.model_folder import fingerprint, read_config

    more = ("--part", "tokenizer", "--merger", "gather", "--quiet")
    assert run(checkpoint, tmp_path / "g", *more) == 0
    assert read_config(tmp_path / "g" / "tokenizer")["model"]["merger"]["mode"] == "gather"
    assert fingerprint(tmp_path / "g" / "tokenizer") != fingerprint(model / "tokenizer")


# ---- what can be wrong


def refused(capsys, source: Path, out: Path, *more: str) -> str:
    """What is said when an import is refused with exit code 2 and nothing written."""
    beside = sorted(out.parent.iterdir())
    assert run(source, out, *more) == 2
    assert sorted(out.parent.iterdir()) == beside
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_missing_file_names_the_command_that_needs_it(copied, tmp_path, capsys):
    (copied / lavit.OVERRIDE).unlink()
    said = refused(capsys, copied, tmp_path / "out")
    assert "visual_weight.bin: missing; pictish describe needs it; nothing was written" in said


def test_all_faults_are_told_one_a_line(copied, tmp_path, capsys):
    (copied / lavit.OVERRIDE).unlink()
    lavit.change(copied / lavit.TOKENIZER, stranger=torch.ones(2), encode_task_layer__0__bias=None)
    said = refused(capsys, copied, tmp_path / "out").splitlines()
    assert len(said) == 4
    assert sum("1 unexpected: stranger 2" in line for line in said) == 1
    assert sum("1 missing: encode_task_layer.0.bias" in line for line in said) == 1
    assert said[-1].endswith("3 faults, listed above; nothing was written")


def test_a_truncated_file(copied, tmp_path, capsys):
    path = copied / lavit.EVA
    path.write_bytes(path.read_bytes()[:-2000])
    assert "eva_vitg_psz14.bin: damaged" in refused(capsys, copied, tmp_path / "out")


class Payload:
    """Harmless: unpickled without care it makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return builtins.open, (str(self.target), "w")


def test_a_malicious_pickle_is_refused_and_nothing_is_run(copied, tmp_path, capsys):
    torch.save({"cls_token": Payload(tmp_path / "made")}, copied / lavit.EVA)
    said = refused(capsys, copied, tmp_path / "out")
    assert "eva_vitg_psz14.bin: refused, it is more than weights: it asks for" in said
    assert not (tmp_path / "made").exists()


def test_video_lavit_is_recognised(copied, tmp_path, capsys):
    (copied / "language_model_sft").mkdir()
    assert "a Video-LaVIT checkpoint" in refused(capsys, copied, tmp_path / "out")


def test_other_folders_are_no_checkpoint(tmp_path, capsys):
    (tmp_path / "some").mkdir()
    assert "no LaVIT checkpoint" in refused(capsys, tmp_path / "some", tmp_path / "out")
    assert "no such folder" in refused(capsys, tmp_path / "none", tmp_path / "out")


def test_out_that_exists_is_not_touched(checkpoint, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    assert "exists already" in refused(capsys, checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_too_little_space_is_told_before_anything_is_written(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "free_bytes", lambda folder: 1000)
    assert "GB are needed and 0.0 GB are free" in refused(capsys, checkpoint, tmp_path / "out")


@pytest.mark.parametrize("heads", ["3,2", "0,1,1", "a,b,c"])
def test_heads_are_three_numbers(checkpoint, tmp_path, capsys, heads):
    assert "expected three positive integers" in refused(
        capsys, checkpoint, tmp_path / "out", "--heads", heads
    )


def test_heads_that_do_not_divide_the_width(checkpoint, tmp_path, capsys):
    assert "is not a multiple of heads 5" in refused(capsys, checkpoint, tmp_path / "out", "--heads", "2,5,2")


# ---- interruptions


def test_an_interrupted_import_goes_on_where_it_stopped(checkpoint, model, pictures, tmp_path, monkeypatch):
    out, written = tmp_path / "out", []
    real = pipeline.write_pieces
    more = ("--pictures", str(pictures), "--quiet")
    calls = iter([True])

    def first(path, pieces, advance):
        if path.parent.name == "understanding" and next(calls, False):
            raise KeyboardInterrupt
        written.append((path.parent.name, path.exists()))
        real(path, pieces, advance)

    monkeypatch.setattr(pipeline, "write_pieces", first)
    assert run(checkpoint, out, *more) == 130
    assert not out.exists()
    assert temp_path(out).is_dir()
    assert run(checkpoint, out, *more) == 0
    assert written == [("tokenizer", False), ("tokenizer", True), ("understanding", False)]
    assert not temp_path(out).exists()
    for path in model.rglob("*"):
        if path.is_file():
            assert (out / path.relative_to(model)).read_bytes() == path.read_bytes()


def test_what_is_left_of_another_import_is_not_taken(checkpoint, copied, tmp_path, monkeypatch):
    real = pipeline.write_pieces

    def stop(path, pieces, advance):
        if path.parent.name == "understanding":
            raise KeyboardInterrupt
        real(path, pieces, advance)

    monkeypatch.setattr(pipeline, "write_pieces", stop)
    assert run(checkpoint, tmp_path / "out", "--quiet") == 130
    monkeypatch.setattr(pipeline, "write_pieces", real)
    lavit.write_tokenizer(copied, seed=9)
    assert run(copied, tmp_path / "out", "--quiet", "--part", "tokenizer") == 0
    assert run(copied, tmp_path / "again", "--quiet", "--part", "tokenizer") == 0
    names = [tmp_path / out / "tokenizer" / "model.safetensors" for out in ("out", "again")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_what_other_parts_lack_is_told_too_when_the_tokenizer_cannot_be_read(copied, tmp_path, capsys):
    (copied / lavit.EVA).unlink()
    said = refused(capsys, copied, tmp_path / "out", *(x for p in ("lm", "decoder") for x in ("--part", p)))
    assert "eva_vitg_psz14.bin: missing; pictish tokenize needs it" in said
    assert "tokenizer.model: missing; pictish generate needs it" in said
    assert "highres_pixel_decoding: missing; pictish detokenize needs it" in said
