"""A forgotten sub-package is silently missing from the wheel; these tests compare setup.cfg with the tree."""

import ast
import fnmatch
import importlib.metadata
import os
import re
import subprocess
import sys

from packaging.requirements import Requirement

from pictish import __version__
from tests.tree import ROOT, ROOT_PARTS, modules, setup_cfg, setup_list


def folder_of(package: str) -> str:
    """Where package_dir says a package lies, by its longest mapped prefix."""
    mapping = dict(line.split(" = ") for line in setup_list("options", "package_dir"))
    prefix = max((name for name in mapping if f"{package}.".startswith(f"{name}.")), key=len)
    return "/".join([mapping[prefix], *package.removeprefix(prefix).split(".")[1:]])


def requirements(section: str, key: str) -> list[Requirement]:
    return [Requirement(line) for line in setup_list(section, key)]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_package_list_is_the_tree():
    in_tree = {
        name if path.stem == "__init__" else name.rpartition(".")[0] for name, path in modules().items()
    }
    assert setup_list("options", "packages") == sorted(in_tree)
    for package in in_tree:
        assert (ROOT / folder_of(package) / "__init__.py").is_file(), package


def test_root_folders_are_mapped_and_not_installed_under_their_own_name():
    listed = setup_list("options", "packages")
    parts = [part for part in ROOT_PARTS if (ROOT / part).is_dir()]
    assert len(parts) >= 4
    for part in parts:
        assert folder_of(f"pictish.{part}") == part
    assert all(package.split(".")[0] == "pictish" for package in listed)


def test_shipped_files_are_in_package_data():
    data = {key: setup_list("options.package_data", key) for key in setup_cfg()["options.package_data"]}
    for package, folder in (
        ("pictish.configs", ROOT / "configs"),
        ("pictish.starter", ROOT / "pictish/starter"),
        ("pictish.ui", ROOT / "pictish/ui"),
    ):
        patterns = [pattern.strip() for line in data[package] for pattern in line.split(",")]
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
        names = [path.relative_to(folder).as_posix() for path in files]
        assert names, package
        assert [name for name in names if not any(fnmatch.fnmatch(name, one) for one in patterns)] == []


def test_every_library_in_use_is_required():
    keys = [key for key in setup_cfg()["options.extras_require"] if key != "dev"]
    required = {normal(one.name) for one in requirements("options", "install_requires")}
    required |= {normal(one.name) for key in keys for one in requirements("options.extras_require", key)}
    providers = importlib.metadata.packages_distributions()
    used = set()
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module.split(".")[0])
    used -= {"pictish", "_typeshed", *sys.stdlib_module_names}
    assert {"torch", "pydantic", "yaml"} <= used
    missing = {name for name in used if not required & {normal(one) for one in providers.get(name, [name])}}
    assert missing == set()


def test_bounds_hold_what_is_installed_and_stop_before_the_next_major():
    for one in requirements("options", "install_requires"):
        installed = importlib.metadata.version(one.name)
        assert one.specifier.contains(installed), f"{one}: {installed} is installed"
        upper = [part.version for part in one.specifier if part.operator == "<"]
        exact = [part for part in one.specifier if part.operator == "=="]
        assert exact or upper == [str(int(installed.split(".")[0]) + 1)], one


def test_development_tools_are_pinned_and_the_pins_are_installed():
    for one in requirements("options.extras_require", "dev"):
        assert [part.operator for part in one.specifier] == ["=="], one
        assert one.specifier.contains(importlib.metadata.version(one.name)), one


def test_the_console_script_exists():
    (line,) = setup_list("options.entry_points", "console_scripts")
    assert line == "pictish = pictish.cli:main"
    from pictish.cli import main

    assert callable(main)


def test_the_version_has_a_changelog_heading():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert any(heading.split()[0] == __version__ for heading in headings[1:])


def test_the_licence_is_apache():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert setup_cfg()["metadata"]["license"] == "Apache-2.0"


def test_the_nightly_job_takes_every_extra_with_the_newest_permitted_releases(tmp_path):
    """With a pip that only says what it was asked for."""
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ] && [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"\n'
        f'elif [ "$1" = - ]; then exec {sys.executable} -\nelse echo "$@"; fi\n'
    )
    fake.chmod(0o755)
    settings = {
        "NIGHTLY": str(tmp_path / "venv"),
        "PYTHON": str(fake),
        "DRY_RUN": "1",
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        [ROOT / ".ci" / "nightly"], env=settings, capture_output=True, text=True, check=True
    )
    asked = done.stdout.splitlines()[-1].split()
    assert {"--upgrade", "--upgrade-strategy", "eager", "--dry-run"} <= set(asked)
    (package,) = [word for word in asked if word.startswith(".[")]
    extras = set(setup_cfg()["options.extras_require"]) - {"dev", "fuzz"}
    assert set(package[2:-1].split(",")) == extras
    pinned = {Requirement(word).name for word in asked if "==" in word}
    assert {"pytest", "hypothesis", "moto"} <= pinned
    assert not pinned & {"peft", "pyarrow", "ray", "s3fs", "tensorboard", "zstandard"}
