"""Bad input of the language model's commands: one line on stderr and exit code 2, never a traceback."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pictish import cli
from pictish.data.shards import ShardFile
from pictish.data.tokens import TokenizedImage
from pictish.tokenizer.dynamic import Tokenizer
from tests.shards import told_picture


@pytest.fixture(scope="session")
def speaking(tiny_models, tmp_path_factory) -> Path:
    """The tiny models with a language model of random weights beside them, context 96, and an image."""
    from pictish.lm.config import NewModel
    from pictish.lm.new_model import new_model
    from pictish.lm.text import train_text_tokenizer
    from pictish.pipelines.lm_training import image_tokens_of
    from tests.lm.tiny import CAPTIONS

    folder = tmp_path_factory.mktemp("speaking") / "model"
    shutil.copytree(tiny_models, folder)
    settings = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 96,
    }
    tokens = image_tokens_of(Tokenizer.from_folder(folder))
    text = train_text_tokenizer(CAPTIONS, 300)
    new_model(NewModel(settings=settings), text, tokens, features=False, seed=0).save(folder / "lm")
    told_picture("red", "bar").save(folder.parent / "bar.png")
    return folder


def tokens(folder: Path, ids: list[int], codes: int = 64, fingerprint: str | None = None) -> bytes:
    """A token file of the model in `folder`, unless it is told to be another's."""
    tokenizer = Tokenizer.from_folder(folder)
    whose = fingerprint or tokenizer.fingerprint
    cells = np.arange(len(ids))
    return TokenizedImage(np.array(ids), cells, tokenizer.grid, (48, 48), whose, codes).to_bytes()


def refused(capsys, *words: str | Path) -> str:
    """The one line on stderr of a command that has to fail."""
    assert cli.main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pictish: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    "words", [["describe", "FILE"], ["edit", "FILE", "x"], ["generate", "x", "--image", "FILE"]]
)
def test_a_token_file_is_no_picture(speaking, tmp_path, capsys, words):
    file = tmp_path / "bar.tokens"
    file.write_bytes(tokens(speaking, [1, 99], codes=100))
    line = refused(capsys, *(file if word == "FILE" else word for word in words), "--model", speaking)
    assert f"{file}: not an image; supported formats: avif bmp" in line


def test_an_unknown_code_is_named_and_not_drawn(speaking, tmp_path, capsys):
    (tmp_path / "bar.tokens").write_bytes(tokens(speaking, [1, 99], codes=100))
    words = ["detokenize", str(tmp_path / "bar.tokens"), str(tmp_path / "out"), "--model", str(speaking)]
    assert cli.main([*words, "--quiet"]) == 1
    assert "bar.tokens: code 99 is unknown; this tokenizer has 0 to 63" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt(speaking, tmp_path, capsys, prompt):
    options = ["--model", speaking, "--out", tmp_path / "out"]
    bar = speaking.parent / "bar.png"
    assert "an empty prompt; say what to draw" in refused(capsys, "generate", prompt, *options)
    assert "an empty prompt; say what to draw" in refused(capsys, "edit", bar, prompt, *options)
    assert "omit it for a caption" in refused(capsys, "describe", bar, prompt, "--model", speaking)
    assert not (tmp_path / "out").exists()


def test_a_prompt_longer_than_the_context(speaking, tmp_path, capsys):
    options = ["--model", speaking, "--out", tmp_path / "out"]
    bar, long = speaking.parent / "bar.png", "a red disc " * 100
    for words in (["generate", long, *options], ["edit", bar, long, *options]):
        assert "tokens with 65 new ones asked for; 96 in all fit" in refused(capsys, *words)
    line = refused(capsys, "describe", bar, long, "--model", speaking)
    assert "tokens with 48 new ones asked for; 96 in all fit" in line


def test_limits_that_contradict_each_other(speaking, tmp_path, capsys):
    for limits in (
        ["--min-tokens", "9", "--max-tokens", "3"],
        ["--min-tokens", "65"],
        ["--max-tokens", "65"],
    ):
        line = refused(capsys, "generate", "x", *limits, "--model", speaking, "--out", tmp_path / "out")
        assert "tokens asked for; an image of this model has 1 to 64" in line


@pytest.mark.parametrize("typed", ["[IMG]", "[/IMG]", "[MASK]", "<code-00001>", "<|end|>"])
def test_a_marker_in_a_prompt_is_text(speaking, tmp_path, capsys, typed):
    from pictish.lm.model import UnifiedModel
    from pictish.lm.vocabulary import text_ids

    model = UnifiedModel.from_folder(speaking)
    ids = text_ids(model.text_tokenizer, f"a {typed} b")
    assert model.text_tokenizer.decode(ids) == f"a {typed} b"
    assert max(ids) < model.vocabulary.begin
    assert model.eos not in ids
    words = ["generate", f"a {typed} b", "--max-tokens", "2", "--model", str(speaking)]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


@pytest.mark.parametrize("most", ["1", "3"])
def test_a_description_is_never_empty(speaking, capsys, monkeypatch, most):
    """Not even one by a model that wants to end at once, or else to write spaces."""
    from pictish.lm.model import UnifiedModel

    model = UnifiedModel.from_folder(speaking)
    wanted = torch.zeros(model.language.lm_head.out_features)
    wanted[list(model.vocabulary.blank)] = 1e4
    wanted[model.eos] = 2e4
    model.language.lm_head.register_forward_hook(lambda module, given, logits: logits + wanted)
    monkeypatch.setattr(UnifiedModel, "from_folder", lambda *given: model)
    words = ["describe", str(speaking.parent / "bar.png"), "--max-new-tokens", most, "--model", str(speaking)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip()


def training(speaking: Path, folder: Path, shard: str, *more: str) -> list[str]:
    """Words that train one step on a shard of `folder`."""
    data = f"data.train.pictures.paths=[{folder / shard}]"
    stage = "stages=[{name: only, steps: 1, warmup: 0}]"
    words = ["train", "lm", "tiny/lm", f"tokenizer={speaking}", data, stage, *more]
    return [*words, "--run", str(folder / "run"), "--device", "cpu", "--quiet"]


def write_tokens(path: Path, blobs: list[bytes]) -> None:
    with ShardFile(path) as shard:
        for number, blob in enumerate(blobs):
            shard.write(f"{number:04d}", {"tokens": blob, "txt": b"a red bar"})


def test_a_shard_of_another_tokenizer(speaking, tmp_path, capsys):
    write_tokens(tmp_path / "other.tar", [tokens(speaking, [1, 2], fingerprint="f" * 12)] * 3)
    line = refused(capsys, *training(speaking, tmp_path, "other.tar"))
    ours = Tokenizer.from_folder(speaking).fingerprint
    assert f"tokens of tokenizer ffffffffffff, but this model reads those of {ours}" in line


def test_a_shard_of_unknown_codes(speaking, tmp_path, capsys):
    write_tokens(tmp_path / "all.tar", [tokens(speaking, [1, 99], codes=100)] * 3)
    line = refused(capsys, *training(speaking, tmp_path, "all.tar"))
    assert "source pictures: 3 samples, no other could be used" in line
    assert "codes 0 to 63 were asked for, found 99" in line


def test_a_shard_of_codes_without_cells(speaking, tmp_path, capsys):
    placed = TokenizedImage.from_bytes(tokens(speaking, [1, 2]))
    write_tokens(tmp_path / "all.tar", [replace(placed, cells=None).to_bytes()] * 3)
    line = refused(capsys, *training(speaking, tmp_path, "all.tar"))
    assert "source pictures: 3 samples, no other could be used" in line
    assert "codes without cells; this language model needs the cell of every code" in line


def test_damage_is_named_once_and_the_exit_code_is_1(speaking, tmp_path, capsys, caplog):
    good, bad = tokens(speaking, [1, 2, 3]), tokens(speaking, [1, 99], codes=100)
    write_tokens(tmp_path / "some.tar", [good] * 6 + [bad])
    write_tokens(tmp_path / "unseen.tar", [good, b"hello"])
    two = "stages=[{name: one, steps: 1, warmup: 0}, {name: two, steps: 1, warmup: 0}]"
    unseen = f"data.validation.unseen={{paths: [{tmp_path}/unseen.tar]}}"
    assert cli.main(training(speaking, tmp_path, "some.tar", unseen, two)) == 1
    said = [record.message for record in caplog.records if "skipped" in record.message]
    assert said == [
        "1 skipped, codes 0 to 63 were asked for, found 99: some.tar/0006",
        "1 skipped, not a token file, or a damaged one: unseen.tar/0001",
    ]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    capsys.readouterr()
    strict = [*training(speaking, tmp_path, "some.tar"), "--run", str(tmp_path / "strict"), "--strict"]
    assert "some.tar/0006: codes 0 to 63" in refused(capsys, *strict)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("data.lengtx=64", "tiny/lm: unknown key data.lengtx; did you mean length?"),
        ("data.train.pictures.captoin=1", "unknown key data.train.pictures.captoin; did you mean caption?"),
        (
            "stages=[{name: a, steps: 1, trainabel: []}]",
            "unknown key stages.0.trainabel; did you mean trainable?",
        ),
        ("data.length", "override 'data.length': write key=value"),
        ("data.length=many", "data.length: got 'many'; input should be a valid integer"),
    ],
)
def test_a_typo_in_the_config(speaking, tmp_path, capsys, change, line):
    assert line in refused(capsys, *training(speaking, tmp_path, "none.tar", change))
    assert not (tmp_path / "run").exists()
