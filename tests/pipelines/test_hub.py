"""Models of the hub against a hub on this machine: what is taken, what is refused, what resumes."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants as constants
import pytest

import pictish
from pictish.commands.options import local_model
from pictish.io import hub as ours
from pictish.io.model_folder import locate_model
from pictish.pipelines.assemble import parts_of
from tests.hub import TOKEN, Repo, running_hub
from tests.tree import ROOT


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub at the address that the library asks, with an empty cache, no token and no waiting."""
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between two tries
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def pipe(whole_model):
    return pictish.Pipeline.from_pretrained(whole_model, device="cpu")


def test_a_model_goes_to_the_hub_and_comes_back(hub, pipe, whole_model):
    url = pipe.push_to_hub("ann/tiny", license="apache-2.0", private=True)
    assert url.startswith(f"{hub.url}/ann/tiny/commit/")
    repo = hub.repos["ann/tiny"]
    assert repo.private
    assert len(repo.commits) == 2  # the empty repository and the model
    files = repo.at("main")[1]
    assert {name.partition("/")[0] for name in files} == {
        ".gitattributes",
        "README.md",
        "pictish.json",
        "tokenizer",
        "lm",
        "decoder",
        "preview",
    }
    card = files["README.md"].decode()
    assert "license: apache-2.0" in card
    assert 'from_pretrained("ann/tiny")' in card
    assert all(part.fingerprint in card for part in parts_of(whole_model).values())

    back = pictish.Pipeline.from_pretrained("ann/tiny", device="cpu")
    assert {name: part.fingerprint for name, part in parts_of(back.model).items()} == {
        name: part.fingerprint for name, part in parts_of(whole_model).items()
    }
    asked = {"seed": 1, "num_inference_steps": 1, "size": 16}
    assert back.generate("the sun", **asked).tobytes() == pipe.generate("the sun", **asked).tobytes()


def test_a_revision_is_loaded_by_argument_or_name(hub, pipe, whole_model):
    pipe.push_to_hub("ann/tiny", revision="v1")
    with pytest.raises(ValueError, match="no tokenizer found"):  # main is empty
        pictish.Pipeline.from_pretrained("ann/tiny")
    named = pictish.Pipeline.from_pretrained("ann/tiny", revision="v1")
    assert local_model("ann/tiny@v1") == str(named.model)
    assert locate_model("ann/tiny@v1", "lm") == Path(named.model) / "lm"
    commit = hub.repos["ann/tiny"].branches["v1"]
    assert pictish.Pipeline.from_pretrained(f"ann/tiny@{commit}").model == named.model
    with pytest.raises(ValueError, match="ann/tiny: the repository has no such revision"):
        pictish.Pipeline.from_pretrained("ann/tiny", revision="v2")
    with pytest.raises(ValueError, match="names a revision, and revision is 'v1'"):
        pictish.Pipeline.from_pretrained("ann/tiny@v1", revision="v1")
    with pytest.raises(ValueError, match=r"revision: 'v1' asked for, but .* is not on the hub"):
        pictish.Pipeline.from_pretrained(whole_model, revision="v1")


def test_pickles_are_named_and_never_downloaded(hub, pipe, caplog):
    pipe.push_to_hub("ann/tiny")
    repo = hub.repos["ann/tiny"]
    strangers = {"lm/pytorch_model.bin": b"\x80\x04", "tokenizer/model.py": b"print()", "a.pkl": b"\x80"}
    repo.commit(repo.at("main")[1] | strangers)
    with caplog.at_level(logging.WARNING, logger="pictish"):
        back = pictish.Pipeline.from_pretrained("ann/tiny")
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("pictish")]
    assert message.endswith("a.pkl, lm/pytorch_model.bin, tokenizer/model.py")
    assert not any(name in request for name in strangers for request in hub.requests)
    assert len(back.tokenizer.fingerprint) == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: files | {"lm/config.json": b"{}"}, "lm/config.json is not the file that"),
        (
            lambda files: {name: blob for name, blob in files.items() if name != "lm/tokenizer.json"},
            "lacks lm/tokenizer.json",
        ),
        (lambda files: files | {"pictish.json": b"[]"}, "pictish.json is damaged"),
        (
            lambda files: files | {"pictish.json": b'{"files": {"../../x.json": ""}}'},
            "is not a plain relative name",
        ),
    ],
)
def test_files_that_are_not_those_of_the_manifest_are_refused(hub, pipe, change, words):
    pipe.push_to_hub("ann/tiny")
    repo = hub.repos["ann/tiny"]
    repo.commit(change(repo.at("main")[1]))
    with pytest.raises(ValueError, match=words):
        pictish.Pipeline.from_pretrained("ann/tiny")


def test_an_interrupted_download_resumes(hub, pipe):
    pipe.push_to_hub("ann/tiny")
    hub.fault = lambda method, path: 404 if method == "GET" and "/decoder/" in path else None
    with pytest.raises((OSError, ValueError), match="ann/tiny"):
        pictish.Pipeline.from_pretrained("ann/tiny")
    hub.fault = lambda method, path: None
    hub.requests.clear()
    assert len(pictish.Pipeline.from_pretrained("ann/tiny").tokenizer.fingerprint) == 12
    fetched = [one for one in hub.requests if one.startswith("GET") and "/resolve/" in one]
    assert fetched
    assert not any("/tokenizer/" in one and one in fetched[1:] and "/decoder/" in one for one in fetched)
    hub.requests.clear()
    pictish.Pipeline.from_pretrained("ann/tiny")
    assert not any("/resolve/" in one for one in hub.requests)


def test_an_upload_that_broke_off_sends_only_what_is_missing(hub, pipe):
    hub.fault = lambda method, path: 403 if path.endswith("/commit/main") else None
    with pytest.raises(OSError, match="ann/tiny"):
        pipe.push_to_hub("ann/tiny")
    sent = len([one for one in hub.requests if one.startswith("PUT")])
    assert sent == len(hub.large) > 0
    hub.fault = lambda method, path: None
    hub.requests.clear()
    pipe.push_to_hub("ann/tiny")
    assert not any(one.startswith("PUT") for one in hub.requests)
    assert len(pictish.Pipeline.from_pretrained("ann/tiny").tokenizer.fingerprint) == 12


def test_parts_that_are_gone_leave_the_repository(hub, pipe, tiny_models):
    pipe.push_to_hub("ann/tiny")
    pictish.Pipeline.from_pretrained(tiny_models).push_to_hub("ann/tiny")
    files = hub.repos["ann/tiny"].at("main")[1]
    assert {name.partition("/")[0] for name in files if "/" in name} == {"tokenizer", "decoder"}
    assert ".gitattributes" in files


def test_what_is_in_the_cache_needs_no_hub(hub, pipe, monkeypatch):
    pipe.push_to_hub("ann/tiny")
    folder = pictish.Pipeline.from_pretrained("ann/tiny").model
    hub.fault = lambda method, path: 503
    assert pictish.Pipeline.from_pretrained("ann/tiny").model == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pictish.Pipeline.from_pretrained("ann/tiny").model == folder
    with pytest.raises(ValueError, match="bob/other: no such folder, and the hub cannot be reached"):
        pictish.Pipeline.from_pretrained("bob/other")


def test_the_token_is_neither_logged_nor_said(hub, pipe, caplog, capsys, monkeypatch):
    hub.repos["ann/closed"] = Repo(private=True)
    said = []
    with caplog.at_level(logging.DEBUG):
        pipe.push_to_hub("ann/tiny", private=True)
        pictish.Pipeline.from_pretrained("ann/tiny")
        hub.fault = lambda method, path: 500
        for call in (
            lambda: pipe.push_to_hub("ann/tiny"),
            lambda: pictish.Pipeline.from_pretrained("bob/x"),
        ):
            with pytest.raises((OSError, ValueError)) as error:
                call()
            said.append(str(error.value))
            assert error.value.__cause__ is None
        hub.fault = lambda method, path: None
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(ValueError, match="ann/closed: neither a folder nor a model on the hub; a priv"):
            pictish.Pipeline.from_pretrained("ann/closed")
    printed = capsys.readouterr()
    for text in (caplog.text, printed.out, printed.err, *said):
        assert TOKEN not in text
        assert "hf_wrong" not in text


def test_a_saved_model_is_the_model(pipe, whole_model, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    again = pictish.Pipeline.from_pretrained(tmp_path / "saved")
    assert again.tokenizer.fingerprint == pipe.tokenizer.fingerprint
    manifest = json.loads((tmp_path / "saved" / "pictish.json").read_text())
    assert manifest["parts"]["lm"] == parts_of(whole_model)["lm"].fingerprint
    ours.check_manifest(tmp_path / "saved", "saved")
    with pytest.raises(ValueError, match="exists already"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.save_pretrained(tmp_path / "saved", overwrite=True)
    (tmp_path / "saved" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds notes\.txt"):
        pipe.save_pretrained(tmp_path / "saved", overwrite=True)


def test_the_card_of_the_run_is_part_of_the_card(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "own")
    use = 'pictish generate "a cat" --model /home/ann/mine'
    text = f"---\nlicense: mit\n---\n# mine\n\n    {use}\n\nPSNR 20 dB\n"
    (tmp_path / "own" / "README.md").write_text(text)
    (tmp_path / "own" / "samples.png").write_bytes(b"png")
    own = pictish.Pipeline.from_pretrained(tmp_path / "own")
    own.save_pretrained(tmp_path / "out", license="cc-by-4.0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n")
    assert card.count("license: ") == 1
    assert "PSNR 20 dB" in card
    assert "/home/ann" not in card
    assert (tmp_path / "out" / "samples.png").read_bytes() == b"png"
    with pytest.raises(ValueError, match="license: 'a b' asked for"):
        own.save_pretrained(tmp_path / "no", license="a b")


def test_a_part_with_code_is_not_published(hub, pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "lm" / "modeling.py").touch()
    with pytest.raises(ValueError, match=r"modeling\.py: only safetensors"):
        pictish.Pipeline.from_pretrained(tmp_path / "own").push_to_hub("ann/tiny")
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("ann/tiny", True),
        ("ann/tiny@v1.0", True),
        ("starter", False),
        ("./ann", False),
        ("../ann", False),
        ("/tmp/ann", False),
        ("ann/tiny/lm", False),
        ("docs/samples", False),  # a folder
        ("~/ann", False),
    ],
)
def test_which_names_are_repositories(name, answer, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert ours.is_repo(name) is answer


@pytest.mark.slow
def test_the_command_line_takes_names_of_the_hub(pipe, whole_model, tmp_path):
    with running_hub() as server:
        environment = os.environ | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "pictish", *words]
            return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)

        pushed = run("model", "push", str(whole_model), "ann/tiny")
        assert pushed.returncode == 0, pushed.stderr
        assert pushed.stdout.startswith(f"{server.url}/ann/tiny/commit/")
        shown = run("model", "info", "ann/tiny", "--json")
        assert json.loads(shown.stdout)["lm"]["fingerprint"] == parts_of(whole_model)["lm"].fingerprint
        out = str(tmp_path / "out")
        drawn = run("generate", "the sun", "--model", "ann/tiny@main", "--steps", "0", "--out", out)
        assert drawn.returncode == 0, drawn.stderr
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["the-sun-0.png"]
        missing = run("generate", "the sun", "--model", "bob/none", "--out", out)
        assert missing.returncode == 2
        assert "bob/none: neither a folder nor a model on the hub" in missing.stderr
        assert TOKEN not in pushed.stderr + shown.stderr + drawn.stderr + missing.stderr
