"""YAML that holds plain data within bounds: what a stranger's file may say, and how much of it."""

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

LARGEST = 1 << 18  # bytes of a file; shipped ones have a few thousand
MOST_VALUES = 50_000  # keys and values, each as often as it is referred to
DEEPEST = 64  # mappings and lists inside one another
_LONGEST_NUMBER = 64  # letters


def read_yaml(path: Path) -> Any:
    """The content of a file; ValueError (one line, with the file) unless it is plain YAML within bounds."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe could block for ever
        raise ValueError(f"{path}: not a regular file")
    if status.st_size > LARGEST:
        raise ValueError(f"{path}: {status.st_size:,} bytes of YAML; at most {LARGEST:,} are read")
    try:
        return parse_yaml(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_yaml(text: str) -> Any:
    """Plain data of a text; ValueError (one line) for anything that is not, or that is too much of it."""
    if len(text) > LARGEST:
        raise ValueError(f"{len(text):,} letters of YAML; at most {LARGEST:,} are read")
    loader = None
    try:
        loader = _Loader(text)  # which looks for letters that YAML has not
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, 1, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST}") from None
    except _TooMuch:
        raise
    except Exception as error:  # PyYAML raises KeyError, IndexError and AttributeError on tags that lie
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())[:300]}") from None
    finally:
        if loader is not None:
            loader.dispose()


class _TooMuch(ValueError):
    """More, or deeper, than is read."""


def _count(node: yaml.Node, depth: int, known: dict[int, int]) -> int:
    """How many values a node stands for, aliases written out; `known`: of nodes met before."""
    if depth > DEEPEST:
        raise _TooMuch(f"nested deeper than {DEEPEST}")
    if id(node) in known:
        if not known[id(node)]:
            raise _TooMuch("an alias refers to what it is part of")
        return known[id(node)]
    known[id(node)] = 0
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    total = 1
    for part in parts:
        total += _count(part, depth + 1, known)
        if total > MOST_VALUES:
            raise _TooMuch(f"more than {MOST_VALUES:,} keys and values, aliases written out")
    known[id(node)] = total
    return total


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number (YAML 1.1 calls it a string) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value} is given twice", node.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of {len(node.value)} letters", node.start_mark
            )
        return int(super().construct_yaml_int(node))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that knows the same numbers as _Loader, and so quotes a string that looks like one."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_NUMBER = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def to_yaml(config: BaseModel | Mapping[str, Any]) -> str:
    """Canonical YAML, sorted keys and block style: equal configurations give equal bytes."""
    plain = config.model_dump(mode="json") if isinstance(config, BaseModel) else _plain(config)
    return dump_yaml(plain)


def dump_yaml(plain: Any) -> str:
    """Canonical YAML of plain data: sorted keys and block style."""
    return yaml.dump(
        plain, Dumper=_Dumper, sort_keys=True, default_flow_style=False, allow_unicode=False, width=4096
    )


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.as_posix() if isinstance(value, Path) else value
