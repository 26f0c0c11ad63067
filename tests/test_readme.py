"""A tour rots unless a test reads it: commands, options, files and links in the documents exist."""

import contextlib
import functools
import io
import re
import shlex
import textwrap

import pytest

from pictish.cli import COMMANDS, GROUPS, main
from pictish.configs import load, parse, shipped_names
from pictish.decoder.config import TrainConfig as DecoderTraining
from pictish.lm.config import TrainConfig as LanguageTraining
from pictish.tokenizer.config import TrainConfig as TokenizerTraining
from tests.tree import ROOT, ROOT_PARTS, modules

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ACKNOWLEDGEMENTS.md"]
DOCUMENTS += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def code_lines(text: str) -> list[str]:
    """Lines of indented and fenced blocks, without comments."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return lines


def commands(text: str) -> list[list[str]]:
    """Every `pictish ...` of a text as words, from code blocks and from `spans`."""
    spans = re.findall(r"`(pictish [^`]+)`", text)
    found = [line for line in [*code_lines(text), *spans] if line.startswith("pictish ")]
    return [shlex.split(line, comments=True)[1:] for line in found]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))


@functools.cache
def help_of(words: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*words.split(), "--help"]) == 0
    return printed.getvalue()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_and_options_exist(name):
    for words in commands(text_of(name)):
        if words[0].isupper() or words[0] in ("...", "--help", "--version"):
            continue
        if words in [[group] for group in GROUPS]:
            continue
        known = [one for one in COMMANDS if words[: len(one.split())] == one.split()]
        assert known, f"{name}: there is no command pictish {' '.join(words)}"
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"^│ \*? {{0,4}}{option}\b", help_of(known[0]), flags=re.MULTILINE), (
                f"{name}: {known[0]} {option}"
            )
        for path in (word for word in words if word.startswith(("docs/", "configs/"))):
            assert (ROOT / path).exists(), f"{name}: {path}"


TRAINING = {"tokenizer": TokenizerTraining, "decoder": DecoderTraining, "lm": LanguageTraining}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documented_configurations_are_valid(name, tmp_path):
    """Shipped ones with the command's overrides, and blocks of YAML whose first line is their command."""
    for words in commands(text_of(name)):
        if words[0] == "train" and words[2:] and words[2] in shipped_names():
            overrides = [word for word in words[3:] if "=" in word and not word.startswith("--")]
            parse(TRAINING[words[1]], load(words[2], overrides), " ".join(words))
    blocks = r"^ +# my\.yaml: +pictish train (\w+) my\.yaml.*\n((?: +.*\n|\n)+)"
    for part, block in re.findall(blocks, text_of(name), flags=re.MULTILINE):
        (tmp_path / "my.yaml").write_text(textwrap.dedent(block))
        parse(TRAINING[part], load(tmp_path / "my.yaml"), block)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name):
    text = text_of(name)
    lines = [*code_lines(text), *re.findall(r"`(make [^`]+)`", text)]
    asked = {word for line in lines if line.startswith("make ") for word in line.split("#")[0].split()[1:]}
    assert asked <= make_targets()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_links_exist(name):
    text = text_of(name)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name}: link to {link}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), flags=re.MULTILINE)
            headings = [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles]
            assert anchor in headings, f"{name}: {link}"
    roots = "configs|data|tokenizer|decoder|lm|pictish|tests|tools|docs|examples"
    for path in re.findall(rf"`((?:{roots})/[\w./-]*)`", text):
        assert (ROOT / path).exists() or not path.endswith((".py", ".md", "/")), f"{name}: {path}"


def test_the_readme_is_short_and_names_what_matters():
    text = text_of("README.md")
    assert len(text.splitlines()) < 150
    assert len(commands(text)) >= 6
    tour = text.split("## Five files to read")[1].split("\n## ")[0]
    files = re.findall(r"^\d\. `([^`]+)`", tour, flags=re.MULTILINE)
    assert len(files) == 5
    assert all((ROOT / file).is_file() for file in files)


def tree_of(document: str) -> list[str]:
    """Files and folders that the tree of a document names, all of which exist."""
    block = text_of(document).split("## The tree")[1].split("```")[1]
    entries = [line.split()[0] for line in block.strip().splitlines()]
    assert [entry for entry in entries if not (ROOT / entry).exists()] == []
    return entries


def test_the_tree_of_the_readme_names_every_part():
    assert {f"{part}/" for part in ROOT_PARTS} <= set(tree_of("README.md"))


def test_the_tree_of_the_architecture_is_the_tree():
    entries = tree_of("docs/architecture.md")
    files = [
        path.relative_to(ROOT).as_posix() for path in modules().values() if not path.name.startswith("__")
    ]
    covered = [
        file
        for file in files
        if file in entries or any(e.endswith("/") and file.startswith(e) for e in entries)
    ]
    assert sorted(set(files) - set(covered)) == []


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of("README.md"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    blocks = python_blocks()
    assert blocks
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "codes:" in capsys.readouterr().out
    assert (tmp_path / "apple.png").stat().st_size > 0
