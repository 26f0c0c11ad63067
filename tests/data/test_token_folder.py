import hashlib
import itertools
import json
import os

import pytest

from pictish.data.token_folder import (
    Entry,
    Header,
    OutputFolder,
    find_tokens,
    plan_outputs,
    read_manifest,
    read_tokens,
    sources_digest,
)
from pictish.data.tokens import TokenizedImage
from pictish.io.finding import File

HEADER = Header("token-folder", "0123456789ab", 2048, {"budget": None, "threshold": 0.5})
NAMES = ["a.tokens", "sub/b.tokens", "ü 名.tokens"]


def digest(blob):
    return hashlib.sha256(blob).hexdigest()


def entry(name, blob=None):
    return Entry(name.replace(".tokens", ".png"), "5" * 64, digest(blob or os.fsencode(name)), 7)


def run(folder, names=NAMES, header=HEADER, overwrite=False, planned=(), finish=True, blob=os.fsencode):
    """Fill the folder; the names that really had to be written."""
    written = []
    with OutputFolder(folder, header, planned or names, overwrite) as output:
        for name in names:
            if output.finished(name) is None:
                output.store(name, blob(name), entry(name, blob(name)))
                written.append(name)
        if finish:
            output.finish()
    return written


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_manifest_is_the_same_in_any_order_and_any_number_of_runs(tmp_path):
    assert run(tmp_path / "one") == NAMES
    expected = content(tmp_path / "one")
    assert sorted(expected) == sorted([*NAMES, "manifest.json"])
    for number, order in enumerate(itertools.permutations(NAMES)):
        folder = tmp_path / f"other{number}"
        run(folder, order[:1], finish=bool(number % 2))
        assert run(folder, order) == list(order[1:])
        assert content(folder) == expected


def test_the_manifest_says_what_is_there_and_nothing_of_the_machine(tmp_path):
    run(tmp_path / "one")
    text = (tmp_path / "one" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert list(manifest) == ["codebook_size", "files", "format", "kind", "settings", "tokenizer"]
    assert sorted(manifest["files"]) == sorted(NAMES)
    assert manifest["files"]["sub/b.tokens"] == {
        "sha256": digest(b"sub/b.tokens"),
        "source": "sub/b.png",
        "source_sha256": "5" * 64,
        "tokens": 7,
    }
    assert str(tmp_path) not in text
    read = read_manifest(tmp_path / "one")
    assert read.header == HEADER
    assert read.files == {name: entry(name) for name in NAMES}


def test_a_finished_folder_is_left_as_it_is(tmp_path):
    run(tmp_path / "one")
    before = {path: path.stat().st_ino for path in (tmp_path / "one").rglob("*.tokens")}
    assert run(tmp_path / "one") == []
    assert before == {path: path.stat().st_ino for path in (tmp_path / "one").rglob("*.tokens")}


def test_a_line_cut_short_by_a_kill_costs_one_file_only(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "one", finish=False)
    partial = tmp_path / "one" / "manifest.partial.jsonl"
    whole = partial.read_bytes()
    for cut in range(len(whole) - 1, 0, -41):
        partial.write_bytes(whole[:cut])
        if b"\n" not in whole[:cut]:  # the head line is written as a whole: a kill cannot cut it
            break
        again = run(tmp_path / "one", finish=False)
        assert len(again) == 1 + len(NAMES) - whole[:cut].count(b"\n")
    partial.unlink()
    run(tmp_path / "one")
    assert content(tmp_path / "one") == content(tmp_path / "whole")


def test_leftovers_of_a_killed_run_go(tmp_path):
    run(tmp_path / "one", finish=False)
    (tmp_path / "one" / "sub" / ".b.tokens.pictish-tmp").write_bytes(b"half")
    run(tmp_path / "one")
    assert not [name for name in content(tmp_path / "one") if "tmp" in name or "partial" in name]


def test_a_removed_or_damaged_file_is_noticed(tmp_path):
    run(tmp_path / "one")
    (tmp_path / "one" / "a.tokens").unlink()
    assert run(tmp_path / "one") == ["a.tokens"]
    (tmp_path / "one" / "a.tokens").write_bytes(b"edited")
    with pytest.raises(ValueError, match=r"a\.tokens exists already and differs; --overwrite"):
        run(tmp_path / "one")
    assert (tmp_path / "one" / "a.tokens").read_bytes() == b"edited"
    assert run(tmp_path / "one", overwrite=True) == NAMES
    assert (tmp_path / "one" / "a.tokens").read_bytes() == b"a.tokens"


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / "a.tokens").write_bytes(b"mine")
    with pytest.raises(ValueError, match="--overwrite"):
        run(tmp_path)
    assert (tmp_path / "a.tokens").read_bytes() == b"mine"


def test_a_file_written_but_not_noted_before_a_kill_is_taken_over(tmp_path):
    (tmp_path / "a.tokens").write_bytes(b"a.tokens")
    assert run(tmp_path) == NAMES
    assert read_manifest(tmp_path).files["a.tokens"] == entry("a.tokens")


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (Header("token-folder", "f" * 12, 2048, HEADER.settings), "tokenizer 0123456789ab, this run has fff"),
        (Header("token-folder", "0123456789ab", 64, HEADER.settings), "codebook size 2048, this run has 64"),
        (Header("token-shards", "0123456789ab", 2048, HEADER.settings), "kind token-folder"),
        (Header("token-folder", "0123456789ab", 2048, {"budget": 8}), "budget none, this run has 8"),
    ],
)
def test_work_of_another_kind_is_refused_and_replaced_only_as_a_whole(tmp_path, other, complaint, finish):
    folder = tmp_path / "one"
    run(folder, finish=finish)
    before = content(folder)
    with pytest.raises(ValueError, match=complaint):
        run(folder, header=other)
    with pytest.raises(ValueError, match="would not be replaced"):
        run(folder, NAMES[:2], header=other, overwrite=True)
    assert content(folder) == before
    assert run(folder, header=other, overwrite=True, blob=lambda name: b"new") == NAMES
    assert read_manifest(folder).header == other
    assert {blob for name, blob in content(folder).items() if name.endswith(".tokens")} == {b"new"}


def test_overwriting_one_file_keeps_the_others(tmp_path):
    run(tmp_path / "one")
    assert run(tmp_path / "one", ["a.tokens"], overwrite=True, blob=lambda name: b"new") == ["a.tokens"]
    files = read_manifest(tmp_path / "one").files
    assert files["a.tokens"].sha256 == digest(b"new")
    assert files["sub/b.tokens"] == entry("sub/b.tokens")


def test_two_runs_at_once_are_refused(tmp_path):
    with (
        OutputFolder(tmp_path, HEADER, NAMES, False),
        pytest.raises(ValueError, match="another process"),
        OutputFolder(tmp_path, HEADER, NAMES, False),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"format": 3, "files": {}}', "format version 3; this program reads version 2"),
        ('{"format": 1, "files": {}}', "reads version 2: tokenize the images again with this version"),
        ('{"name": "my web app"}', "not written by pictish"),
        ("[1]", "not written by pictish"),
        ("{", "not written by pictish"),
        ("[" * 100_000, "not written by pictish"),
        (b"\xff", "not written by pictish"),
        ('{"format": 2, "files": {}, "kind": "token-folder"}', "damaged"),
        ('{"../../x": 1}', "plain relative name"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path, text, complaint):
    if ".." in str(text):
        text = json.dumps({**HEADER.to_json(), "files": {"../../x": entry("a.tokens").to_json()}})
    path = tmp_path / "manifest.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    for attempt in (lambda: run(tmp_path), lambda: read_manifest(tmp_path), lambda: find_tokens([tmp_path])):
        with pytest.raises(ValueError, match=complaint) as error:
            attempt()
        assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        run(tmp_path / "out")


def test_outputs_mirror_the_names_and_two_that_meet_are_named(tmp_path):
    images = [File(tmp_path / name, name) for name in ("a.v2.jpg", "sub/b.png", "ü 名.webp")]
    names = ["a.v2.tokens", "sub/b.tokens", "ü 名.tokens"]
    assert plan_outputs(images) == (dict(zip(names, images, strict=True)), [])
    assert next(iter(plan_outputs(images, ".png")[0])) == "a.v2.png"
    meeting = [File(tmp_path / name, name) for name in ("b.jpg", "b.png", "sub/a.jpg", "sub/a.png")]
    met = [("b.jpg and b.png", "b.tokens"), ("sub/a.jpg and sub/a.png", "sub/a.tokens")]
    problems = [(both, f"would both become {name}; rename one") for both, name in met]
    planned, found = plan_outputs([*images[:1], *meeting])
    assert (list(planned), found) == (["a.v2.tokens"], problems)
    with pytest.raises(ValueError, match=r"sub/a\.jpg and sub/a\.png: would both become sub/a\.tokens"):
        plan_outputs(meeting)


def test_tokens_are_found_sorted_and_missing_ones_too(tmp_path):
    folder = tmp_path / "one"
    blob = TokenizedImage([1, 2], None, (8, 8), (10, 20), "0123456789ab", 2048).to_bytes()
    run(folder, blob=lambda name: blob)
    found = find_tokens([folder])
    assert [token.name for token in found] == NAMES
    assert len(read_tokens(found[1].path)) == 2
    (folder / "a.tokens").unlink()
    found = find_tokens([folder])
    assert [token.name for token in found] == NAMES
    with pytest.raises(FileNotFoundError):
        read_tokens(found[0].path)
    assert [token.name for token in find_tokens([folder / "sub" / "b.tokens", folder / "ü 名.tokens"])] == [
        "b.tokens",
        "ü 名.tokens",
    ]


def test_find_tokens_says_what_is_wrong(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    for inputs, complaint in (
        ([tmp_path], "no token files found"),
        ([tmp_path / "a.png"], "not a token file by its name"),
        ([tmp_path / "gone.tokens"], "no such file"),
    ):
        with pytest.raises(ValueError, match=complaint):
            find_tokens(inputs)


def test_names_that_are_no_unicode_survive_the_manifest(tmp_path):
    name = os.fsdecode(b"\xff.tokens")
    run(tmp_path / "one", [name])
    assert list(read_manifest(tmp_path / "one").files) == [name]
    assert run(tmp_path / "one", [name]) == []


def test_the_digest_of_sources_depends_on_names_and_bytes():
    assert sources_digest([("a", "1"), ("b", None)]) == sources_digest([("a", "1"), ("b", None)])
    others = [[("a", "1")], [("a", None)], [("b", "1")], [("a", "1"), ("b", "1")]]
    assert len({sources_digest(other) for other in others}) == len(others)
