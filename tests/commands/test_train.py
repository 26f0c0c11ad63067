"""`pictish train`: what may be another when a run goes on, and that a run has one process."""

import logging

import pytest

from pictish.cli import main
from pictish.commands.train import base_overrides
from pictish.configs import load, parse
from pictish.decoder.config import TrainConfig as DecoderConfig
from pictish.io.files import only_writer
from pictish.lm.config import TrainConfig
from pictish.pipelines.run_folder import run_folder
from pictish.tokenizer.config import TrainConfig as TokenizerConfig
from pictish.training.resume import MEMORY, READING, REPORTING

PARTS = {"tokenizer": TokenizerConfig, "preview": DecoderConfig, "lm": TrainConfig}
OTHER_VALUES = {
    "data.strict": "true",
    "data.read_ahead": "false",
    "tensorboard": "true",
    "wandb": "true",
    "samples": "[a]",
    "data.cache": "/c",
}
OTHER_VALUES |= {
    "checkpointing": "true",
    "model.attn_implementation": "eager",
    "data.gradient_accumulation_steps": "2",
}


def config(part, *changes):
    return parse(PARTS[part], load(f"tiny/{part}", changes), part)


def has(part, name):
    fields = PARTS[part].model_fields
    group, _, own = name.rpartition(".")
    inner = getattr(fields[group].annotation, "model_fields", {}) if group else fields  # a union has none
    return own in inner


def step(run, part="lm"):
    """A checkpoint, of which the command looks at the name alone."""
    folder = run / "checkpoints" / "step-00000500"
    folder.mkdir(parents=True)
    with run_folder(run, config(part), quiet=False):
        pass


def refusal(run, part, *changes):
    other = pytest.raises(ValueError, match="step-00000500 was trained with other settings: ")
    with other as refused, run_folder(run, config(part, *changes), quiet=False):
        pass
    return str(refused.value)


@pytest.mark.parametrize(
    ("part", "name"), [(p, n) for p in PARTS for n in REPORTING + READING + MEMORY if has(p, n)]
)
def test_a_run_resumes_with_other_reporting_and_less_memory(part, name, tmp_path):
    step(tmp_path, part)
    changed = config(part, f"{name}={OTHER_VALUES.get(name, '1')}")
    assert changed != config(part)
    with run_folder(tmp_path, changed, quiet=False):
        assert parse(PARTS[part], load(tmp_path / "config.yaml"), "run") == changed


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("lm", "data.train.pictures.paths=[/moved/*.tar]"),
        ("lm", "data.validation={}"),
        ("lm", "tokenizer=/moved"),
        ("tokenizer", "data.train=[/moved/a.tar]"),
        ("tokenizer", "data.validation=[/moved/b.tar, /moved/c.tar]"),
        ("preview", "tokenizer=/moved"),
        ("preview", "data.cache=/moved"),
    ],
)
def test_a_run_resumes_with_moved_inputs(part, change, tmp_path):
    step(tmp_path, part)
    with run_folder(tmp_path, config(part, change), quiet=False):
        pass


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("lm", "seed=1", "seed was 0, 1 now"),
        ("lm", "data.rows=16", "data.rows was 4, 16 now"),
        ("lm", "stages=[{name: all, steps: 99, warmup: 4}]", "stages[0].steps was"),
        ("lm", "data.train.more={paths: [/new.tar]}", "data.train.more.weight was not set, 1.0 now"),
        ("lm", "data.train.pictures.weight=2", "data.train.pictures.weight was 1.0, 2.0 now"),
        ("preview", "steps=99", "steps was"),
        ("preview", "data.views=7", "data.views was"),
        ("tokenizer", "seed=1", "seed was 0, 1 now"),
        ("tokenizer", "phases=[{name: a, steps: 7, warmup: 2, quantize: true}]", "phases[0].steps was"),
    ],
)
def test_other_settings_are_named_with_both_values(part, change, said, tmp_path):
    step(tmp_path, part)
    before = (tmp_path / "config.yaml").read_bytes()
    assert said in refusal(tmp_path, part, change)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_many_differences_are_counted(tmp_path):
    step(tmp_path)
    changes = ["seed=1", "ema=0.5", "weight_decay=0.3", "clip_norm=3", "hidden_dropout=0.3", "data.rows=16"]
    assert "; and 1 more; give those" in refusal(tmp_path, "lm", *changes)


def test_a_run_without_a_step_takes_a_new_config(tmp_path):
    with run_folder(tmp_path, config("lm"), quiet=False):
        (tmp_path / "text_tokenizer").mkdir()  # of the config's data and number of pieces
    changed = config("lm", "seed=1", "model.base.vocab_size=310")
    with run_folder(tmp_path, changed, quiet=False):
        assert parse(PARTS["lm"], load(tmp_path / "config.yaml"), "run") == changed
        assert not (tmp_path / "text_tokenizer").exists()
    (tmp_path / "config.yaml").write_text("no: config")
    with run_folder(tmp_path, changed, quiet=False):
        pass


def test_a_level_of_logging_that_a_caller_has_set_comes_back(tmp_path):
    logger = logging.getLogger("pictish")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with run_folder(tmp_path, config("lm"), quiet=False):
            assert logger.level == logging.INFO
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)


def test_a_run_has_one_process(tmp_path, monkeypatch):
    taken = pytest.raises(ValueError, match="another process is writing here")
    with only_writer(tmp_path), taken, run_folder(tmp_path, config("lm"), quiet=False):
        pass
    with only_writer(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with run_folder(tmp_path, config("lm"), quiet=False):
            pass  # the first of its processes holds it
    monkeypatch.delenv("RANK")
    for _ in range(2):
        with run_folder(tmp_path, config("lm"), quiet=False):
            pass


def test_a_base_of_ones_own_is_an_override(tmp_path):
    (tmp_path / "a base").mkdir()
    (tmp_path / "a base" / "config.json").write_text("{}")
    base = config("lm", *base_overrides(tmp_path / "a base", 8, "model.base")).model.base
    assert (base.kind, base.folder, base.lora) == ("pretrained", str(tmp_path / "a base"), 8)
    assert base_overrides(None, None, "model.base") == []


def test_adapters_need_a_pretrained_base(tmp_path, capsys):
    for words in (["lm", "tiny/lm"], ["model", str(tmp_path / "none"), str(tmp_path / "out")]):
        assert main(["train", *words, "--lora", "8"]) == 2
        assert capsys.readouterr().err == (
            "pictish: --lora 8: adapts a pretrained language model; give --base FOLDER\n"
        )
        assert main(["train", *words, "--base", str(tmp_path)]) == 2
        assert "has no config.json; a model folder of transformers fits" in capsys.readouterr().err
