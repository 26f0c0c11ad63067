"""Who may import whom (DESIGN section 2), and what no part may use, read from the source with ast."""

import ast
from pathlib import Path

import pytest

from tests.tree import ROOT, ROOT_PARTS, modules

PARTS = {"configs", "data", "tokenizer", "lm", "decoder"}
PARTS |= {"io", "training", "pipelines", "bulk", "evaluation", "recipes", "commands"}
PARTS |= {"serve", "starter", "ui"}
EVERYTHING = PARTS | {""}
LIBRARY = {"pipelines", "tokenizer", "lm", "decoder", "data", "configs", "training", "io"}
ALLOWED = {
    "": EVERYTHING,  # pictish/cli.py and __main__.py
    "io": {"io"},
    "configs": {"configs", "io"},
    "training": {"training", "io"},
    "starter": set(),
    "data": {"data", "configs", "io"},
    "tokenizer": {"tokenizer", "configs", "io", "data", "training"},
    "lm": {"lm", "configs", "io", "data", "training"},
    "decoder": {"decoder", "configs", "io", "data", "training", "tokenizer"},
    "pipelines": LIBRARY,
    "bulk": LIBRARY | {"bulk"},
    "serve": LIBRARY | {"serve"},
    "ui": {"ui"},  # it speaks to the server as any client does
    "evaluation": LIBRARY | {"evaluation"},
    "recipes": EVERYTHING - {"commands", "serve", "ui", ""},
    "commands": EVERYTHING - {""},
}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
UNSAFE_CALLS = {"eval", "exec", "__import__"}
UNSAFE_ATTRIBUTES = {("torch", "save"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("yaml", "load_all")}
MAY_LOAD_PTH = "pictish.io.torch_files"  # other people's weights, with weights_only=True


def part_of(module: str) -> str:
    """`tokenizer` for pictish.tokenizer.merger; empty for the modules directly below pictish."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[1] in ALLOWED else ""


def imports(tree: ast.AST) -> list[str]:
    """Full names of all that a module imports, wherever the import stands; relative ones start with a dot."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names += [f"{base}.{alias.name}" for alias in node.names] if base == "pictish" else [base]
    return names


def wrong_imports(module: str, source: str) -> list[str]:
    found = []
    for name in imports(ast.parse(source)):
        first = name.split(".")[0]
        if name.startswith(".") or first in ROOT_PARTS:
            found.append(f"{module}: imports {name}; write the full name, pictish.<part>")
        elif name in ("pictish", "pictish.__version__"):  # pictish/__init__.py, which loads nothing of ours
            continue
        elif first == "pictish" and part_of(name) not in ALLOWED[part_of(module)]:
            found.append(f"{module}: {part_of(module)} may not import {name}")
    return found


def unsafe_uses(module: str, source: str) -> list[str]:
    tree = ast.parse(source)
    found = [f"{module}: {name}" for name in imports(tree) if name.split(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        call = ast.unparse(node.func)
        unpickles = tuple(call.split(".")) in UNSAFE_ATTRIBUTES or keywords.get("allow_pickle") == "True"
        evaluates = isinstance(node.func, ast.Name) and call in UNSAFE_CALLS
        any_pth = call == "torch.load" and (module != MAY_LOAD_PTH or keywords.get("weights_only") != "True")
        any_yaml = call == "yaml.load" and "_Loader" not in keywords.get("Loader", "")
        if unpickles or evaluates or any_pth or any_yaml:
            found.append(f"{module}:{node.lineno}: {call}")
    return found


def test_every_part_imports_only_what_it_may():
    sources = {module: path.read_text("utf-8") for module, path in modules().items()}
    assert len(sources) > 20
    assert {part_of(module) for module in sources} >= {
        "configs",
        "data",
        "tokenizer",
        "decoder",
        "training",
        "commands",
    }
    assert sum("pictish" in name for source in sources.values() for name in imports(ast.parse(source))) > 50
    assert [line for module, source in sources.items() for line in wrong_imports(module, source)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pictish.data.tokens", "from pictish.tokenizer.dynamic import Tokenizer"),
        ("pictish.data.tokens", "from data.files import write_atomic"),
        ("pictish.data.tokens", "import tokenizer"),
        ("pictish.data.tokens", "from . import files"),
        ("pictish.lm.model", "def later():\n    from pictish import decoder"),
        ("pictish.lm.model", "import pictish.tokenizer.dynamic"),
        ("pictish.training.runtime", "from pictish.configs import load"),
        ("pictish.tokenizer.train", "from pictish.cli import main"),
        ("pictish.pipelines.reconstruct", "from pictish.commands import tokenize"),
    ],
)
def test_the_import_guard_sees_a_wrong_import(module, source):
    assert len(wrong_imports(module, source)) == 1


def test_the_import_guard_lets_right_imports_pass():
    source = "import torch, database, pictish\nfrom pictish.data.tokens import T\nfrom pictish import configs"
    assert wrong_imports("pictish.tokenizer.dynamic", source) == []


def test_no_pickle_and_no_eval():
    sources = {module: path.read_text("utf-8") for module, path in modules().items()}
    sources |= {
        str(path.relative_to(ROOT)): path.read_text("utf-8") for path in (ROOT / "tools").rglob("*.py")
    }
    assert [line for module, source in sources.items() for line in unsafe_uses(module, source)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "torch.save(x, path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
    ],
)
def test_the_pickle_guard_sees_an_unsafe_use(source):
    assert len(unsafe_uses("pictish.io.files", source)) == 1


def test_the_pickle_guard_allows_the_one_reader_and_a_model_in_eval_mode():
    assert (
        unsafe_uses(MAY_LOAD_PTH, "torch.load(path, weights_only=True)\nmodel.eval()\nre.compile('x')") == []
    )
    assert len(unsafe_uses(MAY_LOAD_PTH, "torch.load(path)")) == 1


def test_bare_names_are_not_imported_by_tests_and_tools():
    paths = [path for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert Path(__file__) in paths
    bare = [
        (path.name, name)
        for path in paths
        for name in imports(ast.parse(path.read_text("utf-8")))
        if name.split(".")[0] in ROOT_PARTS
    ]
    assert bare == []
