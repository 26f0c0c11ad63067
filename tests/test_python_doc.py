"""docs/python.md and examples/ run, on a tiny model in place of the starter."""

import inspect
import re
import subprocess
import sys

import pytest

import pictish
from pictish.pipelines.settings import Settings
from tests.shards import told_picture
from tests.tree import ROOT

DOCUMENT = ROOT / "docs" / "python.md"
VERBS = ("generate", "edit", "describe", "tokenize", "detokenize")


def test_the_examples_of_the_reference_run(whole_model, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), flags=re.DOTALL)
    assert all(any(f"pipe.{verb}(" in block for block in blocks) for verb in VERBS)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.replace('"starter"', repr(str(whole_model))), "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "codes: [" in printed
    assert printed.endswith("cancelled\n")
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


def run(name: str, *words, code: int = 0) -> str:
    command = [sys.executable, ROOT / "examples" / name, *words]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    told_picture("red", "disc", 60).save(folder / "disc.png")
    return folder


def test_the_example_of_a_folder(whole_model, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"no picture")
    printed = run("tokenize_folder.py", pictures, tmp_path / "out", whole_model, code=1)
    tokens = pictish.read_tokens(tmp_path / "out" / "disc.tokens")
    assert printed.startswith(f"disc.png: {len(tokens)} tokens, ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["disc.tokens"]


def test_the_example_of_edits(whole_model, pictures, tmp_path):
    words = ["make it green", "make it larger", "--model", whole_model]
    printed = run("edit_loop.py", pictures / "disc.png", tmp_path / "out", *words)
    assert printed.count("\n") == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "2.png"]


def test_every_example_is_run_here():
    ran = {"tokenize_folder.py", "edit_loop.py"}
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == ran
