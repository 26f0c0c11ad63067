import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from pictish.recipes.starter.evaluation import judge as judge_module
from pictish.recipes.starter.evaluation.judge import (
    DETAIL,
    GRID,
    LEVELS,
    Judge,
    colour_layout,
    palette,
    read_references,
)
from tests.evaluation.emoji import ROLES, TONES, cheap_features, drawn, every_emoji, write_starter_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_starter_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def judge(data):
    return Judge(cheap_features, read_references(data, cheap_features))


def on_white(picture: Image.Image) -> Image.Image:
    paper = Image.new("RGB", picture.size, "white")
    paper.paste(picture, mask=picture.getchannel("A"))
    return paper


def test_references_are_the_emoji_of_all_splits_by_key(judge):
    references = judge.references
    assert references.keys == sorted(key for key, _, _ in every_emoji())
    assert [facts["style"] + "-" + facts["concept"] for facts in references.facts] == references.keys
    assert len(references.of_split("composition-test")) == 3
    assert len(references.of_split("train")) == len(references) - 3
    np.testing.assert_allclose(np.linalg.norm(references.embeddings, axis=1), 1, rtol=1e-5)
    assert references.embeddings.dtype == np.float32
    by_key = {key: picture for key, _, picture in every_emoji()}
    shown = references.picture(5)
    assert shown.tobytes() == on_white(by_key[references.keys[5]]).tobytes()


def test_pictures_are_embedded_alike_alone_and_together(judge):
    pictures = [judge.references.picture(index) for index in range(40)]  # more than a batch
    together = judge.embed(pictures)
    np.testing.assert_allclose(together, judge.references.embeddings[:40], atol=1e-6)
    np.testing.assert_allclose(judge.embed(pictures[7:8])[0], together[7], atol=1e-6)


def test_a_picture_is_nearest_to_its_own_concept(judge):
    own = [facts["concept"] for facts in judge.references.facts]
    embeddings = judge.references.embeddings
    nearest = judge.concepts(embeddings, 3)
    assert [row[0] for row in nearest] == own
    assert all(len(set(row)) == 3 for row in nearest)
    assert judge.hits(embeddings, own, 1).all()
    assert not judge.hits(embeddings, [row[1] for row in nearest], 1).any()
    assert judge.hits(embeddings, [row[2] for row in nearest], 3).all()


def test_a_concept_is_as_near_as_its_nearest_reference(judge):
    cosines = judge.references.embeddings[:4] @ judge.references.embeddings.T
    concepts = sorted({facts["concept"] for facts in judge.references.facts})
    expected = [
        [
            max(c for c, f in zip(row, judge.references.facts, strict=True) if f["concept"] == concept)
            for concept in concepts
        ]
        for row in cosines
    ]
    np.testing.assert_allclose(judge.similarities(judge.references.embeddings[:4]), expected, rtol=1e-6)


def test_a_reference_left_out_is_not_looked_at(judge):
    embeddings = judge.references.embeddings
    everyone = range(len(judge.references))
    found = judge.similarities(embeddings, leave_out=everyone)
    assert found.max() < 1 - 1e-4
    assert judge.similarities(embeddings).max(axis=1) == pytest.approx(1, abs=1e-5)
    own = [facts["concept"] for facts in judge.references.facts]
    # two images of the concept in other styles are left
    assert judge.hits(embeddings, own, 5, leave_out=everyone).all()


def test_strict_hits_ask_for_the_very_picture(judge):
    embeddings = judge.references.embeddings
    everyone = list(range(len(judge.references)))
    assert judge.strict_hits(embeddings, everyone, 1).all()
    apart = everyone[1:] + everyone[:1]
    assert not judge.strict_hits(embeddings, apart, 1).any()
    assert judge.strict_hits(embeddings, apart, len(everyone)).all()


def test_attributes_of_pictures_that_were_held_out(judge):
    held = judge.references.of_split("composition-test")
    embeddings = judge.references.embeddings[held]
    assert judge.attribute("style", embeddings) == [judge.references.facts[i]["style"] for i in held]
    assert judge.attribute("skin_tone", embeddings) == ["dark"] * 3
    assert judge.attribute("gender", embeddings) == ["woman"] * 3


def test_attributes_are_those_of_the_pictures_that_have_one(judge):
    people = [i for i in judge.references.of_split("train") if judge.references.facts[i]["role"]]
    for name, known in (("skin_tone", set(TONES)), ("gender", {"man", "woman"}), ("role", set(ROLES))):
        found = judge.attribute(name, judge.references.embeddings)
        assert set(found) == known
        assert [found[i] for i in people] == [judge.references.facts[i][name] for i in people]


def test_two_tones_are_nobodys_class(data):
    references = read_references(data, cheap_features)
    facts = [dict(each) for each in references.facts]
    (first, *_) = [i for i in references.of_split("train") if facts[i]["skin_tone"]]
    facts[first]["skin_tone"] = ["light", "dark"]
    changed = Judge(cheap_features, dataclasses.replace(references, facts=facts))
    assert set(changed.attribute("skin_tone", references.embeddings)) == set(TONES)


def test_colour_layout_is_far_from_white_where_the_ink_is():
    pixels = np.full((1, DETAIL, DETAIL, 3), 255, dtype=np.uint8)
    assert not colour_layout(pixels).any()
    field = DETAIL // GRID
    pixels[0, :field, -1, :] = 0
    pixels[0, :4, :4, 0] = 0
    layout = colour_layout(pixels).reshape(GRID, GRID, 3)
    assert layout[0, 0, 0] == pytest.approx(16 / field**2)
    assert (layout[0, 0, 1], layout[1, 0, 0]) == (0, 0)
    assert layout[0, 3] == pytest.approx([1 / field] * 3)


def test_palette_counts_colours_wherever_they_are_but_the_white_of_the_paper():
    pixels = np.full((3, DETAIL, DETAIL, 3), 255, dtype=np.uint8)
    assert not palette(pixels).any()
    pixels[0, :2, :3] = (255, 0, 0)
    pixels[1, 9:11, 20:23] = (255, 0, 0)
    pixels[2, :2, :3] = (255, 32, 0)  # half way to the next level, nearly
    found = palette(pixels) ** 2
    assert found[0] == pytest.approx(found[1])
    assert found[0].sum() == pytest.approx(6)
    red = (LEVELS - 1) * LEVELS**2
    assert np.flatnonzero(found[0]).tolist() == [red]
    assert found[2, [red, red + LEVELS]] == pytest.approx([3, 3], abs=0.02)


def test_an_empty_picture_is_like_nothing(judge):
    (embedding,) = judge.embed([Image.new("RGB", (64, 64), "white")])
    assert np.isfinite(embedding).all()


def test_the_cache_saves_the_work_until_data_or_settings_change(data, tmp_path, monkeypatch):
    cache = tmp_path / "deep" / "references.safetensors"
    seen: list[int] = []

    def features(pictures):
        seen.append(len(pictures))
        return cheap_features(pictures)

    reported: list[int] = []
    first = read_references(data, features, cache, reported.append)
    assert sum(reported) == sum(seen) == len(first)
    seen.clear()
    again = read_references(data, features, cache)
    assert not seen
    assert again.embeddings.tobytes() == first.embeddings.tobytes()
    monkeypatch.setattr(judge_module, "LAYOUT_WEIGHT", 0.1)
    assert read_references(data, features, cache).embeddings.tobytes() != first.embeddings.tobytes()
    assert seen
    cache.write_bytes(b"torn")
    assert len(read_references(data, features, cache)) == len(first)


def test_a_folder_without_the_data_is_a_users_mistake(tmp_path):
    with pytest.raises(ValueError, match=r"is no starter data.*pictish data starter"):
        read_references(tmp_path, cheap_features)


def test_a_sample_without_facts_is_named(data, tmp_path):
    from pictish.data.shards import ShardWriter

    (tmp_path / "manifest.json").write_text(json.dumps({}))
    with ShardWriter(tmp_path / "train", 1000, "noto") as shards:
        shards.write("lonely", {"txt": b"alone"})
    with pytest.raises(ValueError, match=r"lonely lacks its \.json or \.png"):
        read_references(tmp_path, cheap_features)


def test_the_network_gives_a_row_of_features_a_picture():
    pictures = np.stack(
        [np.asarray(on_white(drawn("noto", word)).resize((128, 128))) for word in ("apple", "bell")]
    )
    features = judge_module.network_features()(pictures)
    assert features.shape[0] == 2
    assert features.shape[1] > 100
    assert not np.allclose(features[0], features[1])
