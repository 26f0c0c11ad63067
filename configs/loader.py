"""Reads a YAML configuration: `extends`, `key=value` overrides, errors that name the nearest right key."""

import contextlib
import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from pictish.io.plain_yaml import parse_yaml, read_yaml

SHIPPED = Path(__file__).parent
LARGEST_FLOAT = 3.4028234663852886e38  # of float32


class Config(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    renamed: ClassVar[Mapping[str, str]] = {}  # former name of a key -> its name now; both can be read

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, raw: Any) -> Any:
        """Accept former key names; given beside the new one, a former name is an unknown key."""
        if not isinstance(raw, Mapping):
            return raw
        former = {key: new for key, new in cls.renamed.items() if key in raw and new not in raw}
        return {former.get(key, key): value for key, value in raw.items()}

    @field_validator("*")
    @classmethod
    def _no_overflow(cls, value: Any) -> Any:
        """Numbers that torch or numpy would refuse later, without the key's name."""
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError("a whole number of at most 64 bits fits")
        if isinstance(value, float) and abs(value) > LARGEST_FLOAT:
            raise ValueError(f"a number of at most {LARGEST_FLOAT:.1e} fits")
        return value


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def shipped_names() -> list[str]:
    """Names of the experiments that come with the package, sorted, such as `starter/tokenizer`."""
    return sorted(
        path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.glob("*/**/*.yaml")
    )


def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read one configuration, resolve what it extends, and apply overrides such as `optimizer.lr=1e-4`.

    `name_or_path` is a YAML file or a shipped name. Mappings are merged key by key, all else (lists too) is
    replaced. A mapping that changes its `kind` replaces the one it extends: the old keys are the old kind's.
    So do the mappings that a file lists as `replaces: [data.train]`, beside its `extends`.
    Raises ValueError for a file that is not there or cannot be read, and for an override without `=`.
    """
    return overridden(_read(_locate(name_or_path, None), ()), overrides)


def overridden(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Plain data of a configuration with overrides such as `optimizer.lr=1e-4` applied, as `load` does."""
    changes: dict[str, Any] = {}
    for override in overrides:
        changes = _merge(changes, _parse_override(override))
    return _extended(raw, changes, "override")


def parse(cls: type[ConfigT], raw: Mapping[str, Any], source: str) -> ConfigT:
    """Check `raw` against `cls`; ValueError in one line: `source`, key path, what came, what would fit."""
    try:
        return cls.model_validate(dict(raw))
    except ValidationError as error:
        details = error.errors(include_url=False)
        lines = [
            _explain(cls, detail["type"], detail["loc"], detail["msg"], detail["input"]) for detail in details
        ]
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    raise ValueError(f"{source}: {'; '.join(lines[:3])}{more}")


# ---- files


def _locate(name_or_path: str | Path, beside: Path | None) -> Path:
    """Path of a YAML file given by path (relative to the folder `beside`, if any) or by shipped name."""
    text = str(name_or_path)
    candidates = [SHIPPED / f"{text}.yaml"]
    if text.endswith((".yaml", ".yml")):
        candidates = [beside / text if beside else Path(text), SHIPPED / text]
    elif beside:
        candidates.insert(0, beside / f"{text}.yaml")
    for candidate in candidates:
        with contextlib.suppress(OSError):  # a name that is too long for a file is none's
            if candidate.is_file():
                return candidate.resolve()
    names = shipped_names()
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(names)}"
    raise ValueError(f"configuration {_short(text)}: no such YAML file or shipped name; {hint}")


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """Content of `path` merged over the file it extends; `children` are the files that led here."""
    if path in children:
        raise ValueError(f"{path}: extends itself through {' -> '.join(child.name for child in children)}")
    content = read_yaml(path)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: the top level must be a mapping of keys, not {type(content).__name__}")
    if "extends" not in content:
        if "replaces" in content:
            raise ValueError(f"{path}: replaces: is for files that extend another one")
        return content
    parent = content.pop("extends")
    if not isinstance(parent, str):
        raise ValueError(f"{path}: extends: needs one name or path, got {_short(repr(parent))}")
    return _extended(_read(_locate(parent, path.parent), (*children, path)), content, str(path))


def _parse_override(text: str) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ValueError(f"override {text!r}: write key=value, such as optimizer.lr=1e-4")
    try:
        nested = parse_yaml(value)
    except ValueError as error:
        raise ValueError(f"override {text!r}: {error}") from None
    for part in reversed(parts):
        nested = {part: nested}
    return dict(nested)


def _extended(base: Mapping[str, Any], over: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`over` merged over `base`, which first loses the keys that `over` lists as `replaces`."""
    over, kept = dict(over), dict(base)
    replaces = over.pop("replaces", [])
    if not isinstance(replaces, list) or not all(isinstance(key, str) for key in replaces):
        raise ValueError(f"{source}: replaces: needs a list of keys such as data.train")
    for key in replaces:
        *outer, last = key.split(".")
        inner, given = kept, over
        for part in outer:
            inner[part] = dict(inner[part]) if isinstance(inner.get(part), Mapping) else {}
            given = given[part] if isinstance(given.get(part), Mapping) else {}
            inner = inner[part]
        if last not in inner or last not in given:
            where = "what it extends" if last not in inner else "the file itself"
            raise ValueError(f"{source}: replaces: {_short(key)} is no key of {where}")
        del inner[last]
    return _merge(kept, over)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    if "kind" in base and "kind" in over and base["kind"] != over["kind"]:
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


# ---- errors


def _explain(
    cls: type[BaseModel], kind: str, location: tuple[int | str, ...], message: str, came: Any
) -> str:
    """One finding of pydantic in our words: key path, what came, what would fit."""
    known, keys = _walk(cls, location)
    path = ".".join(keys) or "top level"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {path}; {hint}"
    if kind == "missing":
        return f"{path} is missing"
    if kind == "union_tag_not_found":
        return f"{path} needs a key kind"
    message = " ".join(message.removeprefix("Value error, ").replace("Input ", "input ", 1).split())
    if kind == "value_error" and isinstance(
        came, Mapping
    ):  # a rule about several keys, which says their values
        return f"{'.'.join(keys)}: {message}" if keys else message
    value = " ".join(repr(came).split())
    return f"{path}: got {_short(value)}; {message}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _walk(cls: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Keys known beside the last part of `location`, and `location` as the file writes it (no union tags)."""
    here: list[Any] = [cls]
    known: list[str] = []
    keys: list[str] = []
    for part in location:
        models = [one for one in here if isinstance(one, type) and issubclass(one, BaseModel)]
        tagged = [one for one in models if _has_tag(one, part)]
        fields = [one for one in models if part in one.model_fields]
        if len(models) > 1 and tagged:  # the tag of a discriminated union: it is not a key in the file
            here = list(tagged)
            continue
        keys.append(_short(str(part)))
        known = sorted({name for one in models for name in one.model_fields})
        if fields:
            here = [leaf for one in fields for leaf in _leaves(one.model_fields[str(part)].annotation)]
        elif models:
            here = []
        else:  # an index into a list or a key of a free mapping
            here = [leaf for one in here for item in get_args(one) for leaf in _leaves(item)]
    return known, keys


def _has_tag(cls: type[BaseModel], tag: int | str) -> bool:
    field = cls.model_fields.get("kind")
    return field is not None and tag in get_args(field.annotation)


def _leaves(annotation: Any) -> Iterator[Any]:
    """Members of a union, through Annotated and Optional."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _leaves(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _leaves(member)
    else:
        yield annotation
