import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator, model_validator

from pictish.configs import Config, load, parse, shipped_names
from pictish.io.plain_yaml import to_yaml


class Vq(Config):
    kind: Literal["vq"] = "vq"
    codes: int = 2048


class Fsq(Config):
    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 8)


class Optimizer(Config):
    lr: float = 1e-3
    warmup: int = 10

    @field_validator("warmup")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value

    @model_validator(mode="after")
    def _together(self) -> "Optimizer":
        if self.lr > self.warmup:
            raise ValueError(f"lr {self.lr} is more than warmup {self.warmup}")
        return self


class Train(Config):
    steps: int
    optimizer: Optimizer = Optimizer()
    quantizer: Annotated[Vq | Fsq, Field(discriminator="kind")] = Vq()
    stages: tuple[Optimizer, ...] = ()
    named: dict[str, Optimizer] = Field(default_factory=dict)
    maybe: Optimizer | None = None


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def message(raw: dict) -> str:
    with pytest.raises(ValueError, match=r"^run\.yaml: ") as caught:
        parse(Train, raw, "run.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("run.yaml: ")


def test_extends_merges_mappings_and_replaces_lists(tmp_path):
    write(tmp_path / "base.yaml", "steps: 1\noptimizer: {lr: 1e-3, warmup: 5}\nstages: [{lr: 1}, {lr: 2}]\n")
    write(tmp_path / "deep/mid.yaml", "extends: ../base\noptimizer: {lr: 2e-3}\n")
    top = write(tmp_path / "top.yaml", "extends: deep/mid.yaml\nsteps: 9\nstages: [{lr: 3}]\n")
    assert load(top) == {"steps": 9, "optimizer": {"lr": 0.002, "warmup": 5}, "stages": [{"lr": 3}]}


def test_another_kind_replaces_the_mapping_and_the_same_kind_merges(tmp_path):
    base = write(tmp_path / "base.yaml", "quantizer: {kind: vq, codes: 7}\n")
    other = write(tmp_path / "other.yaml", "extends: base\nquantizer: {kind: fsq}\n")
    assert load(other) == {"quantizer": {"kind": "fsq"}}
    assert load(base, ["quantizer.kind=vq"]) == {"quantizer": {"kind": "vq", "codes": 7}}
    either_order = ["quantizer.levels=[4, 4]", "quantizer.kind=fsq"]
    want = {"quantizer": {"kind": "fsq", "levels": [4, 4]}}
    assert load(base, either_order) == load(base, either_order[::-1]) == want


def test_overrides_are_yaml_values_and_the_last_one_wins(tmp_path):
    path = write(tmp_path / "a.yaml", "optimizer: {warmup: 5}\n")
    raw = load(
        path, ["optimizer.lr=1e-4", "steps=3", "steps=4", "name=a=b", "flag=true", "empty=", "list=[1, x]"]
    )
    assert raw["optimizer"] == {"warmup": 5, "lr": 0.0001}
    assert raw["steps"] == 4
    assert raw["name"] == "a=b"
    assert raw["flag"] is True
    assert raw["empty"] is None
    assert raw["list"] == [1, "x"]
    assert load(path) == {"optimizer": {"warmup": 5}}


@pytest.mark.parametrize("override", ["steps", "=3", "a..b=1", ".a=1", "steps=[1"])
def test_a_malformed_override_is_one_line(tmp_path, override):
    with pytest.raises(ValueError, match=rf"^override '{re.escape(override)}': [^\n]*$"):
        load(write(tmp_path / "a.yaml", ""), [override])


def test_unknown_keys_name_the_nearest_right_key():
    assert message({"stpes": 3, "steps": 1}) == "unknown key stpes; did you mean steps?"
    assert message({"steps": 1, "optimizer": {"warmpu": 3}}).startswith(
        "unknown key optimizer.warmpu; did you mean warmup?"
    )
    nested = {"steps": 1, "quantizer": {"kind": "fsq", "levles": [1]}}
    assert message(nested) == "unknown key quantizer.levles; did you mean levels?"
    assert (
        message({"steps": 1, "stages": [{"lr": 1}, {"lrr": 1}]})
        == "unknown key stages.1.lrr; did you mean lr?"
    )
    assert (
        message({"steps": 1, "named": {"a": {"warm": 1}}}) == "unknown key named.a.warm; did you mean warmup?"
    )
    assert message({"steps": 1, "maybe": {"warmupp": 1}}) == "unknown key maybe.warmupp; did you mean warmup?"
    assert message({"steps": 1, "quantizer": {"kind": "vq", "zzz": 1}}) == (
        "unknown key quantizer.zzz; known here: codes, kind"
    )


def test_wrong_values_say_what_came_and_what_would_fit():
    assert message({}) == "steps is missing"
    assert message({"steps": "many"}).startswith("steps: got 'many'; input should be a valid integer")
    assert message({"steps": 1, "optimizer": {"lr": float("nan")}}).startswith("optimizer.lr: got nan; ")
    wrong_kind = message({"steps": 1, "quantizer": {"kind": "vqq"}})
    assert wrong_kind.startswith("quantizer: got {'kind': 'vqq'}; ")
    assert "'vq', 'fsq'" in wrong_kind
    assert message({"steps": 1, "quantizer": {"codes": 3}}) == "quantizer needs a key kind"
    many = message({"a": 1, "b": 1, "c": 1, "d": 1})
    assert many.count("unknown key") == 2  # after the missing one; the rest is counted
    assert many.endswith("and 2 more")
    assert message({"steps": 1, "optimizer": {"warmup": 3}}) == "optimizer.warmup: got 3; must be even"
    assert message({"steps": 1, "optimizer": {"lr": 12}}) == "optimizer: lr 12.0 is more than warmup 10"
    assert len(message({"steps": "x" * 1000})) < 200


def test_configs_are_frozen():
    config = parse(Train, {"steps": 1}, "run.yaml")
    with pytest.raises(ValidationError):
        config.steps = 2
    assert config.steps == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("a: 1\na: 2", "key a is given twice"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("extends: [a]", "needs one name or path"),
        ("extends: nowhere", "configuration nowhere"),
        ("extends: bad", "extends itself through bad.yaml"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, what):
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ValueError, match=re.escape(what)) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_what_is_shipped(tmp_path):
    with pytest.raises(ValueError, match="no such YAML file or shipped name"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="no such YAML file or shipped name"):
        load("no/such/name")


def test_shipped_names_load_without_a_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = shipped_names()
    assert "starter/tokenizer" in names
    for name in names:
        assert load(name) == load(f"{name}.yaml")
    with pytest.raises(ValueError, match=r"did you mean starter/tokenizer\?"):
        load("starter/tokeniser")


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    path = write(tmp_path / "a.yaml", "a: 1e-4\nb: -2E3\nc: 1.5e+2\nd: '1e-4'\ne: e5\nf: 1e\n")
    assert load(path) == {"a": 1e-4, "b": -2000.0, "c": 150.0, "d": "1e-4", "e": "e5", "f": "1e"}


def test_yaml_is_canonical_and_comes_back():
    first = Train(steps=3, stages=(Optimizer(lr=1e-5),), quantizer=Fsq(levels=(5, 4)))
    text = to_yaml(first)
    raw = yaml.safe_load(text)
    assert text == to_yaml(raw) == to_yaml(dict(reversed(raw.items())))
    assert parse(Train, raw, "text") == first
    assert list(raw) == sorted(raw)
    assert "  levels:\n  - 5\n  - 4\n" in text


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
TREES = st.recursive(
    SCALARS, lambda sub: st.lists(sub, max_size=3) | st.dictionaries(st.text(max_size=4), sub, max_size=3)
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    tree=st.dictionaries(st.sampled_from(["a", "b", "1e-4", "x y"]), TREES, max_size=4),
    text=st.sampled_from(["1e5", "0x1", "no"]),
)
def test_any_mapping_round_trips(tmp_path_factory, tree, text):
    tree = {**tree, "text": text}
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    path.write_text(to_yaml(tree), "utf-8")
    assert load(path) == tree
    assert to_yaml(load(path)) == path.read_text("utf-8")


class Renamed(Config):
    renamed: ClassVar = {"old": "new"}

    new: int = 1


def test_a_former_key_name_is_still_read():
    assert parse(Renamed, {"old": 2}, "x") == parse(Renamed, {"new": 2}, "x")
    assert parse(Renamed, {"old": 2}, "x").model_dump() == {"new": 2}
    with pytest.raises(ValueError, match="old"):
        parse(Renamed, {"old": 2, "new": 3}, "x")


def test_a_mapping_can_be_replaced(tmp_path):
    write(tmp_path / "base.yaml", "a: {x: {one: 1, two: 2}, y: 3}\nb: {z: 4}")
    child = write(tmp_path / "child.yaml", "extends: base\nreplaces: [a.x]\na: {x: {three: 3}}")
    assert load(child) == {"a": {"x": {"three": 3}, "y": 3}, "b": {"z": 4}}
    assert load(child, ["replaces=[b]", "b={w: 1}"])["b"] == {"w": 1}
    assert load(child)["b"] == {"z": 4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: base\nreplaces: [a.q]\na: {q: 1}", "a.q is no key of what it extends"),
        ("extends: base\nreplaces: [a.x]", "a.x is no key of the file itself"),
        ("extends: base\nreplaces: a", "needs a list of keys"),
        ("replaces: [a]\na: 1", "for files that extend"),
    ],
)
def test_what_cannot_be_replaced_is_said(text, said, tmp_path):
    write(tmp_path / "base.yaml", "a: {x: {one: 1}}")
    with pytest.raises(ValueError, match=said):
        load(write(tmp_path / "child.yaml", text))
