"""A configuration as YAML with what each key means, from the descriptions of its fields."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

from pictish.io.plain_yaml import dump_yaml

WIDTH = 100  # letters of a comment line


def commented_yaml(config: BaseModel, header: str = "") -> str:
    """All keys in the order of their classes, each below its description; it reads back as `config`.

    `header` becomes comment lines on top.
    """
    top = [f"# {line}".rstrip() for line in header.splitlines()]
    return "\n".join([*top, *_lines(config, 0)]) + "\n"


def _lines(config: BaseModel, depth: int) -> list[str]:
    indent, lines = "  " * depth, []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if field.description:
            lines += [f"{indent}# {line}" for line in textwrap.wrap(field.description, WIDTH - 2 * depth)]
        lines += _entry(name, value, depth)
    return lines


def _entry(name: str, value: Any, depth: int) -> list[str]:
    indent = "  " * depth
    if isinstance(value, BaseModel):
        return [f"{indent}{name}:", *_lines(value, depth + 1)]
    if isinstance(value, Mapping) and value and all(isinstance(each, BaseModel) for each in value.values()):
        inner = [line for key, each in value.items() for line in _entry(str(key), each, depth + 1)]
        return [f"{indent}{name}:", *inner]
    if _is_list(value) and value and all(isinstance(each, BaseModel) for each in value):
        lines = [f"{indent}{name}:"]
        classes: dict[type[BaseModel], None] = dict.fromkeys(type(each) for each in value)
        for cls in classes:  # the keys of elements, which take a line each
            for key, field in cls.model_fields.items():
                if field.description:
                    lines.append(f"{indent}  # {key}: {field.description}")
        return lines + [f"{indent}  - {flow(each.model_dump(mode='json'))}" for each in value]
    return [f"{indent}{name}: {flow(_plain(value))}"]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if _is_list(value) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def flow(plain: Any) -> str:
    """Plain data as one line of YAML."""
    if isinstance(plain, dict | list) and plain:
        return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6).strip()
    return dump_yaml(plain).removesuffix("...\n").strip()
