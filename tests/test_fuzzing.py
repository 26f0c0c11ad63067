"""Readers and hostile input: a few hundred changed files each, what was found before, and bombs."""

import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pictish.configs import load
from pictish.data.shards import ShardFile, read_shard
from pictish.data.token_folder import read_manifest, read_tokens
from pictish.data.tokens import TokenizedImage
from pictish.io.files import only_writer
from pictish.io.plain_yaml import LARGEST, parse_yaml
from tests.fuzzing import TARGETS, Found, Target, changed, check

CORPUS = Path(__file__).parent / "corpus"
FOUND = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_true_inputs_are_taken(tmp_path, name):
    for blob in TARGETS[name].seeds():
        check(TARGETS[name], blob, tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_are_taken_or_refused(tmp_path, name):
    chance = random.Random(name)
    refused = 0
    for number in range(200):
        blob = changed(TARGETS[name], chance)
        refused += check(TARGETS[name], blob, tmp_path, measured=number < 20) is not None
    assert refused > 20


@pytest.mark.parametrize("path", FOUND, ids=[f"{path.parent.name}/{path.name}" for path in FOUND])
def test_what_was_found_once_is_refused(tmp_path, path):
    assert check(TARGETS[path.parent.name], path.read_bytes(), tmp_path, measured=True) is not None


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(blob=st.binary(max_size=2000))
def test_any_bytes_are_refused(tmp_path, name, blob):
    check(TARGETS[name], blob, tmp_path)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(st.tuples(NAMES, st.binary(max_size=600)), max_size=5))
def test_any_names_in_a_tar_stay_inside(tmp_path, members):
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name, blob in members:
            (tmp_path / "member").write_bytes(blob)
            member = tarfile.TarInfo(name)
            member.size = len(blob)
            with (tmp_path / "member").open("rb") as file:
                tar.addfile(member, file)
    check(TARGETS["shard"], (tmp_path / "in.tar").read_bytes(), tmp_path)


def test_the_watch_sees_what_it_must(tmp_path):
    def reader(act):
        # without true inputs, which would be read unwatched
        return Target(lambda blob, folder: act(), list, (b"",))

    for act in (
        lambda: Path("/tmp/pictish-fuzz").write_bytes(b"x"),
        lambda: __import__("os").system("true"),
        lambda: bytearray(200 << 20),
        lambda: 1 // 0,
        lambda: (_ for _ in ()).throw(ValueError("x" * 3000)),
    ):
        with pytest.raises(Found):
            check(reader(act), b"", tmp_path, measured=True)


# ---- bombs: small inputs that ask for much

DOUBLED = "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40))
MERGED = "".join(f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}]}}\n" for i in range(40))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a0: &a0 [x, x]\n" + DOUBLED, "more than 50,000"),
        ("a0: &a0 {x: 1}\n" + MERGED, "more than 50,000"),
        ("a: &a [*a]", "part of"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested deeper"),
        ("- " * 300 + "a", "nested deeper"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: 2001-99-99", "not valid YAML"),
        ("a: 0x" + "f" * 5000, "a number of 5002 letters"),
        ("x" * (LARGEST + 1), "letters of YAML"),
    ],
)
def test_yaml_that_asks_for_much(text, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value)


def test_many_keys_are_read_in_time_and_a_large_file_not_at_all(tmp_path):
    assert len(parse_yaml("\n".join(f"k{i}: 1" for i in range(5000)))) == 5000
    (tmp_path / "a.yaml").write_bytes(b"a: 1\n" * (LARGEST // 5 + 1))
    with pytest.raises(ValueError, match=r"a\.yaml: 262,\d+ bytes of YAML"):
        load(tmp_path / "a.yaml")


def pax(size: int) -> bytes:
    """A shard whose first member has an extended header of that many bytes."""
    blob = bytearray(512)
    blob[:7], blob[100:108], blob[124:136] = b"x/a.txt", b"0000644\0", b"%011o\0" % size
    blob[156:157], blob[257:265] = b"x", b"ustar\x0000"
    blob[148:156] = b" " * 8
    blob[148:156] = b"%06o\0 " % sum(blob)
    return bytes(blob) + b"17 comment=" + b"x" * min(size, 1000)


@pytest.mark.parametrize("size", [1 << 20, 1 << 33 - 1])
def test_a_header_that_claims_to_be_large_is_not_read(tmp_path, size):
    (tmp_path / "a.tar").write_bytes(pax(min(size, 8**11 - 1)))
    with pytest.raises(ValueError, match=r"a\.tar: damaged: a header of [\d,]+ bytes"):
        list(read_shard(tmp_path / "a.tar"))


def test_headers_that_go_on_and_on_are_refused(tmp_path):
    one = bytearray(pax(512)[:512]) + b"17 comment=12345\n" + bytes(512 - 17)
    (tmp_path / "a.tar").write_bytes(bytes(one) * 3000)
    assert check(TARGETS["shard"], bytes(one) * 3000, tmp_path, measured=True) is not None


def test_a_token_file_is_read_up_to_a_size(tmp_path):
    (tmp_path / "a.tokens").write_bytes(bytes(1 << 24) + b"x")
    with pytest.raises(ValueError, match="16,777,217 bytes; at most 16,777,216 are read"):
        read_tokens(tmp_path / "a.tokens")
    header = b'{"__metadata__":{"pictish":"' + b"[" * 100_000 + b'"}}'
    with pytest.raises(ValueError, match="not a token file"):
        TokenizedImage.from_bytes(len(header).to_bytes(8, "little") + header)


def test_pipes_do_not_block(tmp_path):
    import os

    for name in ("a.tokens", "manifest.json", "a.yaml"):
        os.mkfifo(tmp_path / name)
    for read in (
        lambda: read_tokens(tmp_path / "a.tokens"),
        lambda: read_manifest(tmp_path),
        lambda: load(tmp_path / "a.yaml"),
    ):
        with pytest.raises(ValueError, match=r"not a regular file|no such YAML"):
            read()


# ---- names that lead out of OUT


@pytest.mark.parametrize(
    "name",
    ["../evil.tokens", "/tmp/evil.tokens", "a/../../evil.tokens", "..", "../.tokens", "a\\..\\evil.tokens"],
)
def test_a_manifest_with_names_that_lead_out_writes_nothing(tmp_path, name, tiny_models, capsys):
    from pictish.cli import main

    folder = tmp_path / "in" / "tokens"
    (folder).mkdir(parents=True)
    (folder / "good.tokens").write_bytes(
        TokenizedImage(np.arange(3), None, (8, 8), (9, 9), "0" * 12, 64).to_bytes()
    )
    with only_writer(folder):
        facts = {"sha256": "0" * 64, "source_sha256": "0" * 64, "tokens": 3}
        import json

        header = {
            "codebook_size": 64,
            "format": 2,
            "kind": "token-folder",
            "settings": {},
            "tokenizer": "0" * 12,
        }
        text = json.dumps({**header, "files": {name: facts}})
        (folder / "manifest.json").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    assert main(["detokenize", str(folder), str(tmp_path / "in" / "out"), "--model", str(tiny_models)]) == 2
    assert "is not a plain relative name" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(folder)


@pytest.mark.parametrize("key", ["../evil", "/tmp/evil"])
def test_a_shard_with_keys_that_lead_out_writes_nothing(tmp_path, key, tiny_models, capsys):
    from pictish.cli import main

    path = tmp_path / "in" / "a.tar"
    with ShardFile(path) as shard:
        shard.write("k" * len(key), {"tokens": b"x"})
    blob = path.read_bytes().replace(b"k" * len(key), key.encode())
    block = bytearray(blob[:512])
    block[148:156] = b" " * 8
    path.write_bytes(blob[:148] + b"%06o\0 " % sum(block) + blob[156:])
    code = main(["detokenize", str(path), str(tmp_path / "in" / "out"), "--model", str(tiny_models)])
    assert code in (1, 2)
    assert "is not a plain relative name" in capsys.readouterr().err
    written = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert written <= {"a.tar", "manifest.json"}
