import hashlib

import pytest
import torch
import yaml

from pictish.io.model_folder import fingerprint, locate_model, read_model_folder, write_model_folder

CONFIG = {"kind": "dynamic", "rate": 1e-4, "levels": [2, 3]}
TENSORS = {"b.weight": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(1, dtype=torch.float16)}


def test_what_was_written_comes_back(tmp_path):
    write_model_folder(tmp_path / "deep" / "model", CONFIG, TENSORS)
    model = read_model_folder(tmp_path / "deep" / "model")
    assert model.config == CONFIG
    assert {name: tensor.dtype for name, tensor in model.tensors.items()} == {
        "a": torch.float16,
        "b.weight": torch.float32,
    }
    assert all(torch.equal(model.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_the_fingerprint_is_of_the_bytes(tmp_path):
    write_model_folder(tmp_path / "one", CONFIG, TENSORS)
    write_model_folder(tmp_path / "two", dict(reversed(CONFIG.items())), dict(reversed(TENSORS.items())))
    write_model_folder(tmp_path / "three", {**CONFIG, "rate": 2e-4}, TENSORS)
    write_model_folder(tmp_path / "four", CONFIG, {**TENSORS, "a": torch.zeros(1, dtype=torch.float16)})
    blob = b"".join((tmp_path / "one" / name).read_bytes() for name in ("config.yaml", "model.safetensors"))
    assert fingerprint(tmp_path / "one") == hashlib.sha256(blob).hexdigest()[:12]
    assert fingerprint(tmp_path / "two") == fingerprint(tmp_path / "one")
    assert len({fingerprint(tmp_path / name) for name in ("one", "three", "four")}) == 3
    assert read_model_folder(tmp_path / "three").fingerprint == fingerprint(tmp_path / "three")


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path):
    write_model_folder(tmp_path / "model", CONFIG, TENSORS)
    with pytest.raises(ValueError, match="exists already"):
        write_model_folder(tmp_path / "model", {"kind": "other"}, TENSORS)
    assert read_model_folder(tmp_path / "model").config == CONFIG
    write_model_folder(tmp_path / "model", {"kind": "other"}, TENSORS, overwrite=True)
    assert read_model_folder(tmp_path / "model").config == {"kind": "other"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        write_model_folder(tmp_path / "home", CONFIG, TENSORS, overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.yaml", b"a: [", "not valid YAML"),
        ("config.yaml", b"\xff\xfe\0", "not valid YAML"),
        ("config.yaml", b"- 1\n", "holds list"),
        ("config.yaml", b"!!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("model.safetensors", b"nonsense", "safetensors"),
        ("model.safetensors", b"", "safetensors"),
    ],
)
def test_a_damaged_model_is_refused_on_one_line(tmp_path, name, content, complaint):
    write_model_folder(tmp_path / "model", CONFIG, TENSORS)
    (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as error:
        read_model_folder(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_locating_a_model(tmp_path):
    for part in ("tokenizer", "decoder"):
        write_model_folder(tmp_path / "both" / part, CONFIG, TENSORS)
    assert locate_model(tmp_path / "both", "tokenizer") == tmp_path / "both" / "tokenizer"
    assert locate_model(str(tmp_path / "both" / "decoder"), "decoder") == tmp_path / "both" / "decoder"
    with pytest.raises(ValueError, match=r"no lm found .*both/config\.yaml and .*both/lm/config\.yaml"):
        locate_model(tmp_path / "both", "lm")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(ValueError, match="has no model"):
        read_model_folder(locate_model(tmp_path / "half", "lm"))


def test_the_starter_is_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr("pictish.__file__", str(tmp_path / "pictish" / "__init__.py"))
    with pytest.raises(ValueError, match=r"'starter'; looked for .*pictish/starter/tokenizer/config\.yaml"):
        locate_model("starter", "tokenizer")
    write_model_folder(tmp_path / "pictish" / "starter" / "tokenizer", CONFIG, TENSORS)
    assert locate_model("starter", "tokenizer") == tmp_path / "pictish" / "starter" / "tokenizer"
