"""What a sample is, from its members, from a shard and from a folder."""

import contextlib
import io
import json
import re
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.data.loader import ImageBytes
from pictish.data.samples import (
    DamagedSample,
    Dialogue,
    Document,
    Edit,
    Pair,
    PlainText,
    Preference,
    Question,
    index_folder,
    index_shard,
    parse_sample,
)
from pictish.data.shards import ShardFile, read_shard, scan_shard
from pictish.data.tokens import TokenizedImage
from tests.tree import ROOT

OURS, THEIRS = "7d8480af75e7", "0123456789ab"


def image(first=1, tokenizer=OURS):
    return TokenizedImage([first, 7, 3], [0, 5, 9], (4, 4), (64, 48), tokenizer, 2048)


TOKENS = image().to_bytes()
EDIT = {"edit": {"source": "source.png", "instruction": "make it red", "target": "target.png"}}
DOCUMENT = {"document": [{"text": "Before: "}, {"image": "a.png"}, {"text": ""}, {"image": "b.tokens"}]}


def dump(value):
    return json.dumps(value).encode()


def parse(members, **arguments):
    return parse_sample("one.tar", "k", members, **arguments)


def raw(blob, suffix):
    return ImageBytes(blob, f"one.tar/k.{suffix}")


def test_a_pair_keeps_every_caption_and_all_facts():
    facts = {"caption": "a cat", "captions": ["a black cat", " a cat ", ""], "style": "noto"}
    sample = parse({"png": b"P", "txt": "\ufeffa größe\n".encode(), "json": dump(facts)})
    assert sample == Pair("one.tar", "k", raw(b"P", "png"), ("a größe", "a cat", "a black cat"), facts)
    assert parse({"tokens": TOKENS, "txt": b"x"}, tokenizer=OURS).picture == image()
    assert parse({"jpg": b"J", "json": b'{"caption": "x"}'}).captions == ("x",)


def test_tokens_count_before_raw_pictures():
    assert parse({"png": b"P", "tokens": TOKENS, "txt": b"x"}).picture == image()


def test_an_edit_names_its_pictures():
    members = {"source.png": b"S", "target.png": b"T", "json": dump(EDIT)}
    assert parse(members) == Edit(
        "one.tar", "k", raw(b"S", "source.png"), "make it red", raw(b"T", "target.png")
    )
    # after its images were tokenized the JSON still says .png
    tokenized = {"source.tokens": TOKENS, "target.tokens": image(2).to_bytes(), "json": dump(EDIT)}
    edit = parse(tokenized, tokenizer=OURS)
    assert (edit.before, edit.after) == (image(), image(2))
    plain = {"edit": {**EDIT["edit"], "source": "PNG", "target": "tokens"}}
    edit = parse({"png": b"S", "tokens": TOKENS, "json": dump(plain)})
    assert (edit.before, edit.after) == (raw(b"S", "png"), image())


def test_questions():
    turn, other = {"question": "what?", "answer": "a cat"}, {"question": "where?", "answer": "here"}
    expected = (("what?", "a cat"), ("where?", "here"))
    assert parse({"png": b"P", "json": dump(turn)}).turns == expected[:1]
    sample = parse({"png": b"P", "json": dump({"questions": [turn, other]})})
    assert sample == Question("one.tar", "k", raw(b"P", "png"), expected)


def test_documents_and_plain_text():
    sample = parse({"a.png": b"A", "b.tokens": TOKENS, "json": dump(DOCUMENT)}, tokenizer=OURS)
    assert sample == Document("one.tar", "k", ("Before: ", raw(b"A", "a.png"), image()), (False,) * 3)
    given = {"document": [{"image": "a.png", "given": True}, {"text": ""}, *DOCUMENT["document"][1:]]}
    sample = parse({"a.png": b"A", "b.tokens": TOKENS, "json": dump(given)}, tokenizer=OURS)
    assert sample.given == (True, False, False)
    text = {"document": [{"text": "one "}, {"text": "two"}]}
    assert parse({"json": dump(text)}, text_alone=False) == PlainText("one.tar", "k", "one two")
    assert parse({"txt": b"words\n"}) == PlainText("one.tar", "k", "words")


def test_preferences_of_answers_drawings_edits_and_dialogues():
    members = {"a.png": b"A", "b.png": b"B", "png": b"P"}

    def parsed(**said):
        return parse({**members, "json": dump({"preference": said})})

    sample = parsed(question="what?", chosen="a cat", rejected="a dog")
    assert isinstance(sample, Preference)
    assert sample.chosen == Question("one.tar", "k", raw(b"P", "png"), (("what?", "a cat"),))
    assert sample.rejected == Question("one.tar", "k", raw(b"P", "png"), (("what?", "a dog"),))
    assert sample.chosen.picture is sample.rejected.picture, "so that it is tokenized once"
    sample = parsed(prompt=" a cat ", chosen="a.png", rejected="b.png")
    assert sample.chosen == Pair("one.tar", "k", raw(b"A", "a.png"), ("a cat",), {})
    assert sample.rejected == Pair("one.tar", "k", raw(b"B", "b.png"), ("a cat",), {})
    sample = parsed(source="png", instruction="redder", chosen="a.png", rejected="b.png")
    assert sample.chosen == Edit("one.tar", "k", raw(b"P", "png"), "redder", raw(b"A", "a.png"))
    assert sample.rejected.before is sample.chosen.before
    asked = [{"role": "user", "content": [{"image": "a.png"}, {"text": "what?"}]}]
    sample = parsed(messages=asked, chosen="a cat", rejected=[{"image": "b.png"}])
    assert isinstance(sample.chosen, Dialogue)
    assert [one.messages[1].parts for one in (sample.chosen, sample.rejected)] == [
        ("a cat",),
        (raw(b"B", "b.png"),),
    ]
    assert sample.chosen.messages[0].parts[0] is sample.rejected.messages[0].parts[0]


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"json": dump({"caption": ["a cat", "a black cat"]})}, ["a cat", "a black cat"]),
        ({"json": dump({"text": "a cat"})}, ["a cat"]),
        ({"json": dump({"TEXT": "a cat", "caption": None})}, ["a cat"]),
        ({"json": dump({"prompt": "a cat", "description": {"en": "x"}})}, ["a cat"]),
        ({"caption": b"a dog", "cls": b"3"}, ["a dog"]),
        ({"text": b"a dog"}, ["a dog"]),
        ({"caption.txt": b"a dog"}, ["a dog"]),
        ({"jsonl": b'{"caption": "a"}\n{"caption": "b"}\n[1]\n'}, ["a", "b"]),
        ({"txt": b"a", "json": dump({"captions": ["b", "a"], "alt": "c"})}, ["a", "b", "c"]),
    ],
)
def test_captions_of_known_names(members, captions):
    assert list(parse({"jpg": b"P", **members}).captions) == captions


def test_captions_under_a_key_of_the_users():
    members = {"jpg": b"P", "txt": b"a.jpg", "json": dump({"Label": ["a cat"], "caption": "x"})}
    assert parse_sample("s", "k", members, caption_key="label").captions == ("a cat",)
    with pytest.raises(
        ValueError, match="has no caption: nothing under title in its JSON, which has Label, caption"
    ):
        parse_sample("s", "k", members, caption_key="title")


def test_a_picture_with_a_name_is_the_picture_where_it_is_alone():
    assert parse({"input.jpg": b"P", "caption.txt": b"x"}).picture == raw(b"P", "input.jpg")
    assert parse({"png": b"mask", "jpg": b"P", "txt": b"x"}).picture == raw(b"P", "jpg")
    with pytest.raises(ValueError, match="has named images, and no JSON that says which"):
        parse({"a.jpg": b"P", "b.jpg": b"P", "txt": b"x"})


TURN = {"question": "q", "answer": "a"}


def preferred(**said):
    return {"png": b"P", "a.png": b"A", "json": dump({"preference": said})}


DAMAGED = [
    ({"txt": b"\xff"}, "its .txt is not UTF-8"),
    ({"png": b"P", "json": dump({"document": [{"image": "png", "given": True}]})}, "nothing is learned"),
    ({"txt": b" \n"}, "text is empty"),
    ({"png": b"P"}, "has no caption"),
    ({"png": b"P", "txt": b" "}, "has no caption"),
    ({"png": b"P", "txt": b"\xff\xfe"}, "not UTF-8"),
    ({"png": b"P", "json": b"\xff"}, "its .json is not UTF-8"),
    ({"png": b"P", "json": b'{"caption": "x"'}, "its .json is no JSON$"),
    ({"png": b"P", "json": b"[" * 100_000}, "its .json is no JSON$"),
    ({"png": b"P", "json": b"[1]"}, "no JSON object"),
    ({"png": b"P", "json": dump({"caption": 3})}, "a caption is missing or no text"),
    ({"png": b"P", "json": dump({"captions": ["x", 3]})}, "a caption is missing or no text"),
    ({"png": b"P", "json": dump({"title": "x"})}, "has no caption: .* in its JSON, which has title"),
    ({"png": b"P", "jsonl": b"{"}, "its .jsonl is not lines of JSON"),
    ({"jpg": b"P", "cls": b"281"}, "has no caption"),
    ({"png": b"P", "json": b'{"caption": "\\ud83d"}'}, "half of a character"),
    ({"json": dump({"caption": "x"})}, "has no image"),
    ({"txt": b"x", "json": dump({"style": "noto"})}, "has no image"),
    ({"tokens": b"no", "txt": b"x"}, "not a token file"),
    ({"tokens": TOKENS[:-9] + b"\x01" + TOKENS[-8:], "txt": b"x"}, "checksum"),
    ({"json": dump({**EDIT, **TURN})}, "its JSON has edit and question"),
    ({"source.png": b"S", "json": dump(EDIT)}, "lacks the member 'target.png'"),
    ({"png": b"S", "json": dump({"edit": "x"})}, "edit in its JSON is no object"),
    (
        {"png": b"S", "json": dump({"edit": {"source": "png", "target": "png"}})},
        "edit's instruction is missing",
    ),
    (
        {"png": b"S", "json": dump({"edit": {"source": "png", "instruction": " ", "target": "png"}})},
        "edit's instruction is empty",
    ),
    (
        {"png": b"S", "txt": b"x", "json": dump({"edit": {**EDIT["edit"], "source": "txt"}})},
        "names 'txt' as an image",
    ),
    ({"json": dump(TURN)}, "has no image"),
    ({"png": b"P", "json": dump({"question": "q"})}, "a question's answer is missing"),
    ({"png": b"P", "json": dump({"questions": []})}, "no list of questions"),
    ({"png": b"P", "json": dump({"questions": ["q"]})}, "a question in its JSON is no object"),
    ({"json": dump({"document": "x"})}, "document in its JSON is no list"),
    ({"json": dump({"document": []})}, "document is empty"),
    ({"json": dump({"document": [{"text": " "}]})}, "document is empty"),
    ({"json": dump({"document": ["x"]})}, "a part of its document is neither"),
    ({"json": dump({"document": [{"text": "x", "image": "a.png"}]})}, "a part of its document is neither"),
    ({"json": dump({"document": [{"image": "a.png"}]})}, "lacks the member 'a.png'"),
    ({"json": dump({"document": [{"image": "../../etc/passwd"}]})}, "as an image"),
    ({"png": b"P", "json": dump({"preference": "x"})}, "no object with one of question, prompt"),
    (preferred(chosen="x", rejected="y"), "no object with one of question, prompt"),
    (preferred(question="q", prompt="p", chosen="x", rejected="y"), "no object with one of question, prompt"),
    (preferred(question="q", chosen="x"), "preference's rejected is missing"),
    (preferred(question="q", chosen=" ", rejected="y"), "preference's chosen is empty"),
    (preferred(prompt="p", chosen="a.png", rejected="b.png"), "lacks the member 'b.png'"),
    (preferred(prompt="p", chosen="a cat", rejected="a dog"), "as an image"),
    (preferred(instruction="i", chosen="a.png", rejected="png"), "preference's source is missing"),
    (preferred(messages=[], chosen="x", rejected="y"), "take turns"),
    (preferred(messages="x", chosen="x", rejected="y"), "no list of 1 to"),
    (preferred(messages=[{"role": "user", "content": "x"}], chosen="x"), "content of a message is no text"),
]


@pytest.mark.parametrize(("members", "reason"), DAMAGED)
def test_damage_is_one_line_that_names_the_sample(members, reason):
    with pytest.raises(DamagedSample, match=reason) as error:
        parse(members)
    assert str(error.value) == f"one.tar/k: {error.value.reason}"
    assert "\n" not in str(error.value)


def test_a_text_that_has_lost_its_picture():
    with pytest.raises(ValueError, match=r"one\.tar/k: has no image"):
        parse({"txt": b"a caption"}, text_alone=False)


def test_tokens_of_another_tokenizer_are_refused_with_both_names():
    members = {"tokens": image(tokenizer=THEIRS).to_bytes(), "txt": b"x"}
    with pytest.raises(ValueError, match=rf"one\.tar/k: .*{THEIRS}.*{OURS}"):
        parse(members, tokenizer=OURS)
    assert parse(members).picture.tokenizer == THEIRS


keys = [
    "edit",
    "document",
    "question",
    "questions",
    "answer",
    "caption",
    "captions",
    "text",
    "image",
    "source",
    "preference",
    "prompt",
    "instruction",
    "messages",
    "chosen",
    "rejected",
]
values = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5) | st.sampled_from(["png", "a.png", "tokens"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=4),
    max_leaves=6,
)


@settings(deadline=None, max_examples=25)
@given(values, st.sampled_from([b"", b"x", b"\xff"]))
def test_whatever_the_json_says_a_sample_comes_or_a_damaged_one(value, text):
    members = {"png": b"P", "a.png": b"A", "txt": text, "json": json.dumps(value).encode()}
    with contextlib.suppress(DamagedSample):
        assert isinstance(parse(members), Pair | Edit | Question | Document | PlainText)


def test_an_index_finds_what_reading_finds(tmp_path):
    samples = {
        "a": {"png": b"A" * 600, "txt": b"a caption"},
        "sub/ü " + "long" * 60: {"source.png": b"S", "target.png": b"T" * 3000, "json": dump(EDIT)},
        "c": {"tokens": TOKENS, "txt": b"c"},
    }
    with ShardFile(tmp_path / "one.tar") as shard:
        for key, members in samples.items():
            shard.write(key, members)
    index = index_shard(tmp_path / "one.tar")
    assert [index.key(row) for row in range(len(index))] == list(samples)
    for row in (2, 0, 1):
        key = index.key(row)
        assert index.read(row, OURS) == parse_sample("one.tar", key, samples[key])
    assert [dict(sample) for sample in read_shard(tmp_path / "one.tar")] == [
        {"__key__": key, **members} for key, members in samples.items()
    ]
    (tmp_path / "one.tar").write_bytes((tmp_path / "one.tar").read_bytes() + b"\0" * 512)
    with pytest.raises(DamagedSample, match=r"one\.tar/a: its shard was changed"):
        index.read(0)
    (tmp_path / "one.tar").unlink()
    with pytest.raises(DamagedSample, match=r"one\.tar/a: No such file"):
        index.read(0)


def test_a_cut_or_flipped_shard_is_indexed_as_far_as_it_is_read(tmp_path):
    path = tmp_path / "one.tar"
    with ShardFile(path) as shard:
        for key in "abc":
            shard.write(key, {"png": key.encode() * 700, "txt": b"x"})
    blob = path.read_bytes()
    flipped = [
        blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :] for place in range(3, len(blob), 397)
    ]
    assert len(flipped) > 10
    lost = 0
    for damaged in [*(blob[:length] for length in range(0, len(blob), 397)), *flipped]:
        path.write_bytes(damaged)
        read, error = [], None
        try:
            for sample in read_shard(path):
                read.append(sample["__key__"])
        except ValueError as refused:
            error = refused
        index = index_shard(path)
        assert [index.key(row) for row in range(len(index))] == read
        assert (index.damage is not None) == (error is not None)
        lost += error is not None
        for row in range(len(index)):
            with contextlib.suppress(DamagedSample):  # nothing else is raised
                assert len(index.read(row).picture.blob) == 700
    assert lost > 10


def test_named_pictures_go_through_a_shard_but_no_named_text_or_pickle(tmp_path):
    with pytest.raises(ValueError, match="has members"), ShardFile(tmp_path / "a.tar") as shard:
        shard.write("a", {"source.txt": b"x"})
    with pytest.raises(ValueError, match="has members"), ShardFile(tmp_path / "a.tar") as shard:
        shard.write("a", {"x.source.png": b"x"})
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.json", "a.Source.PNG", "b.more.source.png", "b.source.txt", "b.png.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    assert list(read_shard(tmp_path / "a.tar")) == [
        {"__key__": "a", "json": b"x", "source.png": b"x"},
        *(
            {"__key__": f"b%2E{name}", kind: b"x"}
            for name, kind in (("more%2Esource", "png"), ("source", "txt"))
        ),
        {"__key__": "b%2Epng", "txt": b"x"},
    ]
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.source.png"))
        tar.addfile(tarfile.TarInfo("a.source.pickle"))
    for reader in (read_shard, scan_shard):
        with pytest.raises(ValueError, match=r"b\.tar: .*pickle"):
            list(reader(tmp_path / "b.tar"))


def test_a_picture_folder(tmp_path):
    files = {
        "cat.JPG": b"C",
        "cat.txt": b"a cat",
        "sub/dog.v2.png": b"D",
        "sub/dog.v2.json": b'{"caption": "a dog"}',
        "sub/white.json": dump(EDIT),
        "sub/white.source.png": b"S",
        "sub/white.target.png": b"T",
        "sub/alone.tif": b"A",
        "sub/odd": b"\xff\xd8\xff",
        "sub/old.psd": b"",
        "manifest.json": b"{}",
        "notes.md": b"",
        ".hidden.txt": b"h",
        ".git/x.txt": b"h",
    }
    for name, blob in files.items():
        (tmp_path / "F" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "F" / name).write_bytes(blob)
    index = index_folder(tmp_path / "F")
    rows = {index.key(row): row for row in range(len(index))}
    assert set(rows) == {"cat", "sub/alone", "sub/dog.v2", "sub/white"}
    assert index.read(rows["cat"]) == Pair("F", "cat", ImageBytes(b"C", "F/cat.jpg"), ("a cat",), {})
    assert index.read(rows["sub/dog.v2"]).captions == ("a dog",)
    assert (index.hidden, list(index.ignored)) == (2, ["sub/odd", "sub/old.psd"])
    edit = index.read(rows["sub/white"])
    assert (edit.before.blob, edit.after.blob) == (b"S", b"T")
    with pytest.raises(DamagedSample, match="F/sub/alone: has no caption"):
        index.read(rows["sub/alone"])
    (tmp_path / "F" / "cat.txt").unlink()
    with pytest.raises(DamagedSample, match="F/cat: No such file"):
        index.read(rows["cat"])


def documented():
    """Members of each sample that docs/formats.md shows, by key, and the files of its folder."""
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = text[text.index("## Samples for training") : text.index("## Model folder")]
    samples, folder = {}, {}
    for block in re.findall(r"^```\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL):
        is_folder = block.startswith("FOLDER/")
        for line in filter(str.strip, block.splitlines()[is_folder:]):
            name, _, content = line.strip().partition(" ")
            blob = content.strip().encode() or (TOKENS if name.endswith("tokens") else b"P")
            if is_folder:
                folder[name] = blob
            else:
                key, _, suffix = name.partition(".")
                samples.setdefault(key, {})[suffix] = blob
    return samples, folder


def test_the_documented_samples_are_what_the_documentation_says(tmp_path):
    samples, folder = documented()
    with ShardFile(tmp_path / "one.tar") as shard:
        for key, members in samples.items():
            shard.write(key, members)
    for key, members in samples.items():
        assert parse_sample("s", key, members, OURS, text_alone=key == "0008")
    kinds = [type(parse_sample("s", key, members, OURS)) for key, members in samples.items()]
    assert kinds == [
        Pair,
        Pair,
        Edit,
        Question,
        Question,
        Document,
        Dialogue,
        PlainText,
        PlainText,
        Preference,
        Preference,
    ]
    for name, blob in folder.items():
        (tmp_path / "F" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "F" / name).write_bytes(blob)
    index = index_folder(tmp_path / "F")
    assert [type(index.read(row)) for row in range(len(index))] == [Pair, Pair, Edit]
