"""Write docs/config.md: every key of every configuration, from the classes that read them.

    python -m tools.write_config_doc

The same descriptions are the comments of `pictish config show`; a test says whether the file is current.
"""

import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pictish.configs import shipped_names
from pictish.configs.explain import flow
from pictish.configs.loader import SHIPPED
from pictish.decoder.config import TrainConfig as DecoderTraining
from pictish.io.files import write_atomic
from pictish.lm.config import TrainConfig as LanguageTraining
from pictish.pipelines.continuous.config import TrainConfig as ProjectorTraining
from pictish.recipes.own.config import OwnConfig
from pictish.tokenizer.config import TrainConfig as TokenizerTraining

TARGET = Path(__file__).resolve().parents[1] / "docs" / "config.md"
ROOTS: dict[str, tuple[str, type[BaseModel]]] = {
    "tokenizer": ("`pictish train tokenizer`", TokenizerTraining),
    "decoder": ("`pictish train decoder`", DecoderTraining),
    "lm": ("`pictish train lm`", LanguageTraining),
    "output-projector": ("`pictish train output-projector`", ProjectorTraining),
    "model": ("`train.yaml` of `pictish train model`", OwnConfig),
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_HEAD = """# Configuration keys

Every key of the YAML files in `configs/` and of your own ([training.md](training.md#change-an-experiment)).
`pictish config show NAME` prints a configuration in full with the same descriptions. This file is generated:
`make docs`.

## Shipped configurations

| name | hardware | expected |
|---|---|---|
"""


def document() -> str:
    """The whole file."""
    lines = [_HEAD.rstrip("\n")]
    for name in shipped_names():
        said = _said_in(SHIPPED / f"{name}.yaml")
        lines.append(f"| `{name}` | {said.get('hardware', '')} | {said.get('expected', '')} |")
    written: dict[type[BaseModel], str] = {}  # class: how its section is called
    for part, (command, cls) in ROOTS.items():
        lines += ["", f"## {command}", "", *_table(cls, "", part, written)]
    return "\n".join(lines) + "\n"


def _said_in(path: Path) -> dict[str, str]:
    """The comments `# hardware: ...` and `# expected: ...` on top of a shipped file."""
    found = (line[2:].partition(": ") for line in path.read_text("utf-8").splitlines() if line[:2] == "# ")
    return {name: text.strip().replace("|", "\\|") for name, _, text in found}


def _table(cls: type[BaseModel], path: str, part: str, written: dict[type[BaseModel], str]) -> Iterator[str]:
    """A class's own keys, then the sections of those that hold others, each class once."""
    below: list[type[BaseModel]] = []
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in cls.model_fields.items():
        place = f"{path}.{name}".lstrip(".")
        models = list(dict.fromkeys(_models(field.annotation)))
        for model in models:
            if model not in written and model not in ROOT_NAMES:
                kind = _kind_of(model)
                written[model] = f"`{place}`{f' of kind `{kind}`' if kind else ''} ({part})"
                below.append(model)
        value = _value_of(field, models, [written.get(model, "") for model in models if model not in below])
        meaning = (field.description or "").replace("|", "\\|")
        default = f"`{part}`" if name == "part" else _default(field)
        yield f"| `{name}` | {value} | {default} | {meaning} |".replace("|  |", "| |")
    for model in below:
        yield from ["", f"### {written[model]}", ""]
        if model.__doc__:
            yield from [" ".join(model.__doc__.split("\n\n")[0].split()), ""]
        own = written[model].split("`")[1]
        yield from _table(model, own, part, written)


ROOT_NAMES = {cls: name for name, (_, cls) in ROOTS.items()}


def _value_of(field: FieldInfo, models: Sequence[type[BaseModel]], elsewhere: Sequence[str]) -> str:
    """What fits a key; `elsewhere`: sections where its keys are listed already."""
    if not models:
        return _type_of(field.annotation) + _bounds(field)
    if models[0] in ROOT_NAMES:
        return f"the keys of {ROOTS[ROOT_NAMES[models[0]]][0]}"
    kinds = [f"`{kind}`" for kind in map(_kind_of, models) if kind]
    of_kind = f" of kind {', '.join(kinds)}" if kinds else ""
    seen = f"; keys: {', '.join(elsewhere)}" if elsewhere else ""
    null = " or null" if type(None) in get_args(field.annotation) else ""
    return f"{_holder_of(field.annotation)}{of_kind}{null}{seen}"


def _holder_of(annotation: Any) -> str:
    """What holds the keys: one mapping, a list of them, or named ones."""
    origin = get_origin(annotation)
    return "list of mappings" if origin is tuple else "mappings by name" if origin is dict else "mapping"


def _kind_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field and get_origin(field.annotation) is Literal else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """All classes of settings that a value may be, or hold in a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for each in get_args(annotation):
            yield from _models(each)


def _type_of(annotation: Any) -> str:
    """A type as a reader of YAML calls it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_of(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type_of, inner)))
    if origin is tuple or annotation is tuple:
        return f"list of {_type_of(inner[0])}" if inner else "list"
    if origin is dict or annotation is dict:
        return "mapping"
    names = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null"}
    return names.get(annotation, "any")


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in _BOUNDS.items()
        if abs(getattr(limit, name, None) or 0) < 2**53 and getattr(limit, name, None) is not None
    ]
    return f", {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    plain = list(value) if isinstance(value, tuple) else value  # of numbers or texts
    return f"`{flow(plain)}`"


if __name__ == "__main__":
    write_atomic(TARGET, document().encode("utf-8"))
