"""Which files of a folder set are taken, and what they are called; nothing is decoded here."""

from collections import Counter

import pytest

from pictish.recipes.starter.catalogue import FolderSet
from pictish.recipes.starter.samples import SERIES_LIMIT, folder_listing, shards_of


@pytest.fixture
def listing(tmp_path):
    def listing(names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"bytes of {name}".encode())
        return folder_listing(
            FolderSet("clips", "no-such-package", tmp_path, "clip art", "CC-PDDC", "https://x")
        )

    return listing


def captions(listing):
    return {candidate.facts["name"]: candidate.caption for candidate in listing.candidates}


def test_authors_are_taken_out_of_captions(listing):
    names = ["food/red_apple_ann_smit_01.png", "food/pear_ann_smit_02.png", "food/big_pear_zoz_01.png"]
    names += [
        "food/fig_zoz_01.png",
        "food/old_plum_zoz_02.png",
        "food/the_old_saw_01.png",
        "food/saw_blade_01.png",
    ]
    assert captions(listing(names)) == {
        "food/red_apple_ann_smit_01.png": "red apple, food",
        "food/pear_ann_smit_02.png": "pear, food",
        "food/big_pear_zoz_01.png": "big pear, food",
        "food/fig_zoz_01.png": "fig, food",
        "food/old_plum_zoz_02.png": "old plum, food",
        "food/the_old_saw_01.png": "the old saw, food",
        "food/saw_blade_01.png": "saw blade, food",
    }


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a-b_c.svg_d.png", "a b c d"),
        ("signs_and_symbols/stop 3.png", "stop, signs and symbols"),
        ("tools/12.png", "tools"),
        ("7.png", "clip art"),
    ],
)
def test_file_names_as_captions(listing, name, caption):
    assert captions(listing([name])) == {name: caption}


def test_a_long_numbered_series_is_cut(listing):
    found = listing([f"stars/star_{n}pt{n % 7}.png" for n in range(SERIES_LIMIT + 6)] + ["stars/moon.png"])
    assert len(found.candidates) == SERIES_LIMIT + 1
    assert found.left_out == {"series": 6}
    assert "stars/moon.png" in captions(found)


def test_mirrored_twins_share_a_concept_and_a_split(listing, tmp_path):
    (tmp_path / "van.txt").write_text("  A  van.\nde.utf8=Ein Bus\n")
    names = [f"car{n}{twin}.png" for n in range(40) for twin in ("", "_mirror")]
    found = listing([*names, "van.png", "van_mirror.png"])
    splits = {
        candidate.facts["name"]: (candidate.facts["concept"], candidate.split)
        for candidate in found.candidates
    }
    assert len({split for _, split in splits.values()}) > 1
    for name in names:
        assert splits[name] == splits[name.replace("_mirror", "")]
    assert splits["car3_mirror.png"][0] == "clips/car3.png"
    assert captions(found)["van.png"] == captions(found)["van_mirror.png"] == "A van"


def test_keys_are_plain_and_different(listing):
    found = listing(["a b/Ä.png", "a-b/ä.png", "a.b/o.1.png", "x" * 90 + ".png", "x" * 91 + ".png"])
    keys = [candidate.key for candidate in found.candidates]
    assert len(set(keys)) == 5
    assert all(key.isascii() and set(".:/ ").isdisjoint(key) for key in keys)


def test_shards_hold_so_many_and_every_picture_once(listing):
    candidates = listing([f"{chr(97 + n // 9)}{n % 9}.png" for n in range(60)]).candidates
    shards = shards_of(candidates, 4)
    assert Counter(c.key for members in shards.values() for c in members) == Counter(
        c.key for c in candidates
    )
    sizes = {}
    for name, members in shards.items():
        split, file = name.split("/")
        assert {member.split for member in members} == {split}
        sizes.setdefault(split, []).append((file, len(members)))
    assert len(sizes["train"]) > 5
    for files in sizes.values():
        assert [file for file, _ in files] == [f"clips-{n:06d}.tar" for n in range(len(files))]
        assert all(size == 4 for _, size in files[:-1])


def test_the_digest_follows_the_pictures(listing, tmp_path):
    first = listing(["a.png", "b.png"]).source["digest"]
    assert listing(["a.png", "b.png"]).source["digest"] == first
    (tmp_path / "b.png").write_bytes(b"other")
    assert folder_listing(FolderSet("clips", "x", tmp_path, "s", "MIT", "")).source["digest"] != first
