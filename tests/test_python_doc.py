"""docs/python.md and examples/ run, on a tiny model in place of the starter."""

import inspect
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import pictish
from pictish.data.shards import ShardFile
from pictish.pipelines.settings import Settings
from tests.shards import COLOURS, SHAPES, told_picture, write_shard
from tests.tree import ROOT

DOCUMENT = ROOT / "docs" / "python.md"
VERBS = ("generate", "edit", "describe", "tokenize", "detokenize")


def token_shard(pipe: pictish.Pipeline, folder: Path) -> None:
    """One shard of tokens with captions."""
    with ShardFile(folder / "tokens.tar") as shard:
        for colour in COLOURS:
            for shape in SHAPES:
                tokens = pipe.tokenize(told_picture(colour, shape)).to_bytes()
                caption = f"a {colour} {shape}"
                shard.write(caption.replace(" ", "-"), {"tokens": tokens, "txt": caption.encode()})


def test_the_examples_of_the_reference_run(whole_model, tmp_path, monkeypatch, capsys):
    token_shard(pictish.Pipeline.from_pretrained(whole_model), tmp_path / "tokens")
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), flags=re.DOTALL)
    assert all(any(f"pipe.{verb}(" in block for block in blocks) for verb in VERBS)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.replace('"starter"', repr(str(whole_model))), "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "codes: [" in printed
    assert "\ncancelled\n" in printed
    assert "a blue bar " in printed, "of the shard of tokens"
    assert (tmp_path / "apple.png").stat().st_size > 0
    sizes = [one.size for one in names["two"]]  # type: ignore[attr-defined]
    assert (len(names["four"]), sizes) == (4, [(96, 64), (96, 64)])  # type: ignore[arg-type]


def test_the_reference_names_every_argument_and_setting():
    text = DOCUMENT.read_text("utf-8")
    for verb in (*VERBS, "from_pretrained"):
        parameters = inspect.signature(getattr(pictish.Pipeline, verb)).parameters
        (found,) = re.findall(rf"`{verb}\((.*?)\)`", text, flags=re.DOTALL)
        signature = " ".join(found.split())
        for name in set(parameters) - {"self", "cls"}:
            assert re.search(rf"\b{name}\b", signature), f"{verb}: {name}"
    for name in Settings.__annotations__:
        assert f"`{name}`" in text, name
    for name in pictish.__all__:
        assert f"`{name}`" in text or name == "__version__", name


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example as the main program, in this process; what it printed."""

    def run(name: str, *words, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        found = 0
        try:
            runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        except SystemExit as stop:
            found = stop.code
        printed = capsys.readouterr()
        assert found == code, printed.out + printed.err
        return printed.out

    return run


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    told_picture("red", "disc", 60).save(folder / "disc.png")
    return folder


def test_the_example_of_a_folder(run, whole_model, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"no picture")
    printed = run("tokenize_folder.py", pictures, tmp_path / "out", whole_model, code=1)
    tokens = pictish.read_tokens(tmp_path / "out" / "disc.tokens")
    assert printed.startswith(f"disc.png: {len(tokens)} tokens, ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["disc.tokens"]


def test_the_example_of_edits(run, whole_model, pictures, tmp_path):
    words = ["make it green", "make it larger", "--model", whole_model]
    printed = run("edit_loop.py", pictures / "disc.png", tmp_path / "out", *words)
    assert printed.count("\n") == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "2.png"]


def test_the_example_of_a_generation_loop(run, whole_model, tmp_path):
    printed = run("generation_loop.py", "a red disc", tmp_path / "disc.png", whole_model)
    assert int(re.findall(r": (\d+) codes\n", printed)[0]) >= 1
    width, height = pictish.load_image(tmp_path / "disc.png").size
    assert width == height


def test_the_example_of_lora(run, whole_model, tmp_path):
    pipe = pictish.Pipeline.from_pretrained(whole_model)
    token_shard(pipe, tmp_path / "tokens")
    printed = run("finetune_lora.py", tmp_path / "tokens", tmp_path / "out", whole_model, 12)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    tuned = pictish.Pipeline.from_pretrained(tmp_path / "out")
    (before, after) = (one.language_model.language.state_dict() for one in (pipe, tuned))
    changed = {name for name, tensor in after.items() if not torch.allclose(tensor, before[name], atol=1e-3)}
    assert before.keys() == after.keys(), "adapters are merged"
    assert changed
    assert all("_proj" in name for name in changed), "the rest is frozen"
    assert len(tuned.generate("a red disc", max_codes=4).getbands()) == 3


def test_the_example_of_a_timm_encoder(run, tmp_path):
    write_shard(tmp_path / "shards" / "a.tar", 24)
    few = ["phases=[{name: a, steps: 2, quantize: false, learning_rate: 0.001, warmup: 1},"
           " {name: b, steps: 2, quantize: true, learning_rate: 0.001, warmup: 1}]"]  # fmt: skip
    words = [tmp_path / "shards", tmp_path / "run", "test_vit", "random", "tiny/tokenizer", *few]
    printed = run("timm_encoder.py", *words)
    assert printed.splitlines()[-2:] == ["step 4 of 4", str(tmp_path / "run" / "model")]
    tokenizer = pictish.Tokenizer.from_folder(tmp_path / "run" / "model")
    (tokens,) = tokenizer.tokenize([told_picture("red", "disc", 60)])
    assert tokens.grid == (8, 8)


def test_the_example_of_an_evaluation(run, whole_model, pictures):
    told_picture("blue", "bar", 80).save(pictures / "bar.png")
    _, *rows = run("evaluate.py", pictures, whole_model).splitlines()
    numbers = [[float(number) for number in row.split()] for row in rows]
    assert [row[0] for row in numbers[:3]] == [4, 8, 16]
    assert all(0 < row[2] < 100 and -1 <= row[3] <= 1 for row in numbers)


def test_every_example_is_run_here_and_short():
    examples = sorted((ROOT / "examples").glob("*.py"))
    source = Path(__file__).read_text("utf-8")
    assert len(examples) == 6
    for path in examples:
        assert f'run("{path.name}"' in source
        code = path.read_text("utf-8").split('"""', 2)[2]
        assert len([line for line in code.splitlines() if line.strip()]) < 40, path.name
