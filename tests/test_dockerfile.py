"""The Dockerfile, read as text: CI does not build it."""

import inspect
import json
import re
import shlex

import pytest
from packaging.requirements import Requirement

from tests.tree import ROOT, setup_cfg, setup_list


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """Instructions with their arguments, of each stage."""
    lines = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
    found: list[list[tuple[str, str]]] = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            if name == "FROM":
                found.append([])
            found[-1].append((name, " ".join(rest.split())))
    return found


def arguments(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for found, rest in stage if found == name]


def command(text: str) -> list[str]:
    """The exec form, in which signals reach the process itself."""
    return json.loads(text[text.index("[") :])


def test_it_starts_from_a_pinned_image_and_fetches_no_url(stages):
    assert len(stages) == 2
    for stage in stages:
        (base,) = arguments(stage, "FROM")
        python = re.fullmatch(r"python:(\d+\.\d+)-slim-[a-z]+( AS \w+)?", base)
        assert python, base
        assert python[1] == setup_cfg()["options"]["python_requires"].removeprefix(">=")
        assert not arguments(stage, "ADD")
        for run in arguments(stage, "RUN"):
            assert not {"curl", "wget", "git", "sudo"} & set(shlex.split(run)), run


def test_the_server_does_not_run_as_root_and_stays_offline(stages):
    final = stages[-1]
    names = [name for name, _ in final]
    user, _, group = arguments(final, "USER")[-1].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert any(f"useradd --uid {user} " in run for run in arguments(final, "RUN"))
    assert "RUN" not in names[names.index("USER") :]
    assert "HF_HUB_OFFLINE=1" in arguments(final, "ENV")


def test_pytorch_for_the_cpu_is_what_setup_cfg_requires(stages):
    final = stages[-1]
    (index,) = arguments(final, "ARG")
    assert index == "TORCH_INDEX=https://download.pytorch.org/whl/cpu"
    install = next(shlex.split(run) for run in arguments(final, "RUN") if "$TORCH_INDEX" in run)
    given = {one.name: one.specifier for one in map(Requirement, install[5:])}
    required = {
        one.name: one.specifier for one in map(Requirement, setup_list("options", "install_requires"))
    }
    assert given == {name: required[name] for name in ("torch", "torchvision")}
    assert any(run.endswith('pictish-*.whl)[serve]"') for run in arguments(final, "RUN"))


def test_it_serves_and_is_asked_at_the_default_port(stages, whole_model):
    from pictish.commands import serve
    from pictish.pipelines.pipeline import Pipeline
    from pictish.serve.app import create_app

    final = stages[-1]
    options = inspect.signature(serve.run).parameters
    port = str(options["port"].default)
    (entry,) = arguments(final, "ENTRYPOINT")
    assert command(entry) == ["pictish", "serve", "--host", "0.0.0.0", "--port", port]
    assert "host" in options
    assert arguments(final, "EXPOSE") == [port]
    (health,) = arguments(final, "HEALTHCHECK")
    program = command(health)
    assert program[:2] == ["python", "-c"]
    compile(program[2], "HEALTHCHECK", "exec")
    (path,) = re.findall(rf"http://127\.0\.0\.1:{port}(/\w+)'", program[2])
    app = create_app(Pipeline.from_pretrained(whole_model, device="cpu"))
    assert "get" in app.openapi()["paths"][path]


def test_the_builder_gets_what_the_wheel_is_made_of():
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    packages = [line.split(" = ")[1].split("/")[0] for line in setup_list("options", "package_dir")]
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_in == {"LICENSE", "README.md", "pyproject.toml", "setup.cfg", *packages}
    assert all((ROOT / name).exists() for name in let_in)
