import json
from collections import Counter

import numpy as np
import pytest

from pictish.data.images import png_bytes
from pictish.evaluation.metrics import rounded
from pictish.lm.config import DefaultsConfig, ImageGenerationConfig
from pictish.pipelines.settings import Drawing
from pictish.recipes.starter.edits import CAPS, Change
from pictish.recipes.starter.evaluation import editing
from pictish.recipes.starter.evaluation.editing import (
    EDITED,
    MEASURES,
    NEAREST,
    REAL,
    SOURCE,
    TRUE_CODES,
    WAYS,
    WITH_IMAGE,
    WITH_TEXT,
    EditingEvaluation,
    asked_attribute,
    rest,
)
from pictish.recipes.starter.evaluation.judge import Judge, References, read_references
from pictish.recipes.starter.phrases import Picture
from tests.evaluation.emoji import HUES, cheap_features, facts_of
from tests.evaluation.starter import boxed, write_held_out_data

NOTHING = lambda count: None  # noqa: E731


class OracleDrawer:
    """Makes of a source and an instruction the true target; its tokens are the images themselves."""

    def __init__(self, edits, image):
        self.made = {(image(one.before).tobytes(), one.instruction): image(one.after) for one in edits}
        self.reconstructor, self.language, self.model = self, self, self
        self.defaults = DefaultsConfig(threshold=0.7)
        self.tokenizer, self.fingerprint = self, "0123456789ab"
        self.asked, self.kept_of = [], []
        self.usual = ImageGenerationConfig()

    def tokens(self, said, generators, config, **rest):
        assert config.guidance_scale is None, "the usual guidance"
        assert len(said) == len(generators) <= editing.BATCH
        self.asked += said
        return [self.made.get((one.tobytes(), str(other)), one) for one, other in said]

    def tokenize(self, pictures, threshold):
        assert threshold == self.defaults.threshold, "as the language model was trained"
        return pictures

    def kept(self, sources, tokens):
        self.kept_of += sources
        return sources

    def __call__(self, tokens, size, *, generators, drawing, sources=None, **rest):
        assert sources is None or len(sources) == len(tokens)
        assert len(generators) == len(tokens)
        return list(tokens)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return Judge(
        cheap_features, read_references(write_held_out_data(tmp_path_factory.mktemp("data")), cheap_features)
    )


@pytest.fixture
def evaluation(judge):
    made = EditingEvaluation(None, judge, Drawing(), seed=0)
    made.drawer = OracleDrawer(made.edits(1000), made.image)
    return made


def known(*pictures: Picture) -> References:
    ordered = sorted(pictures, key=lambda picture: picture.key)
    return References(
        [each.key for each in ordered],
        [dict(each.facts) for each in ordered],
        [each.tokens for each in ordered],
        np.eye(len(ordered), dtype=np.float32),
    )


def emoji(caption: str, style: str = "noto", split: str = "test", **facts) -> Picture:
    concept = caption.replace(" ", "").replace(",", "")
    picture = png_bytes(boxed(style, caption))
    return Picture(f"{style}-{concept}", picture, facts_of(style, concept, caption, split=split, **facts))


def person(
    gender: str, role: str | None, tone: str | None, style: str = "noto", split: str = "test"
) -> Picture:
    said = " ".join(word for word in (gender, role) if word) + (f", {tone} skin tone" if tone else "")
    return emoji(said, style, split, gender=gender, role=role, skin_tone=tone, subgroup="person-role")


def edit(kind: str, before: Picture, after: Picture | None = None) -> Change:
    return Change(kind, before, after or before, "do it")


COOK, SINGER = person("man", "cook", "dark"), person("man", "singer", "dark")
RED, BLUE = emoji("red heart"), emoji("blue heart")
CLOUD, RAIN = emoji("cloud"), emoji("cloud with rain")


@pytest.mark.parametrize(
    ("change", "attribute"),
    [
        (edit("style", COOK), "style"),
        (edit("skin tone", COOK), "skin_tone"),
        (edit("gender", COOK), "gender"),
        (edit("profession", COOK, SINGER), "role"),
        (edit("hair", COOK), "role"),
        (edit("add", COOK, SINGER), "role"),
        (edit("remove", SINGER, person("man", None, "dark")), "role"),
        (edit("add", CLOUD, RAIN), "thing"),
        (edit("remove", RAIN, CLOUD), "thing"),
        (edit("colour", RED, BLUE), "thing"),
        (edit("same", RED), "nothing"),
        (edit("already", RED), "nothing"),
    ],
)
def test_what_each_kind_of_edit_asks_for(change, attribute):
    assert asked_attribute(change) == attribute
    assert change.kind in CAPS


@pytest.mark.parametrize(
    ("attribute", "same", "other"),
    [
        ("style", emoji("red heart", "twemoji"), BLUE),
        ("nothing", emoji("red heart", "twemoji"), BLUE),
        ("thing", BLUE, emoji("blue square")),
    ],
)
def test_what_is_left_of_a_thing(attribute, same, other):
    assert rest(attribute, RED) == rest(attribute, same)
    assert rest(attribute, RED) != rest(attribute, other)


@pytest.mark.parametrize(
    ("attribute", "same", "others"),
    [
        ("skin_tone", person("man", "cook", "light"), [SINGER, person("woman", "cook", "dark")]),
        ("gender", person("woman", "cook", "dark"), [SINGER, person("woman", "cook", "light")]),
        ("role", SINGER, [person("woman", "cook", "dark"), person("man", "cook", "light"), CLOUD]),
        ("style", person("man", "cook", "dark", "twemoji"), [SINGER, person("man", "cook", "light")]),
    ],
)
def test_what_is_left_of_a_person(attribute, same, others):
    assert rest(attribute, COOK) == rest(attribute, same)
    assert all(rest(attribute, COOK) != rest(attribute, other) for other in others)


def test_kinds_of_edits_are_balanced_and_follow_from_the_seed(evaluation, judge):
    everything = evaluation.edits(1000)
    kinds = Counter(one.kind for one in everything)
    assert set(kinds) == {"style", "skin tone", "gender", "colour", "same", "already"}
    some = evaluation.edits(14)
    assert [one.key for one in some] == [one.key for one in everything[:14]]
    assert set(Counter(one.kind for one in some).values()) == {2, 3}
    assert {one.key for one in EditingEvaluation(None, judge, Drawing(), seed=1).edits(14)} != {
        one.key for one in some
    }
    assert all(one.facts["split"] == "test" for each in everything for one in (each.before, each.after))


def test_the_validation_split_helps_where_test_has_too_few(monkeypatch):
    monkeypatch.setitem(CAPS, "style", 4)  # of the six changes among three styles
    pictures = [emoji("red heart", style) for style in HUES]
    pictures += [emoji("blue heart", style, "validation") for style in HUES]
    pictures += [emoji("green heart", style, "train") for style in HUES]
    references = known(*pictures)
    found = EditingEvaluation(None, Judge(cheap_features, references), Drawing(), seed=0).edits(100)
    splits = [{one.before.facts["split"], one.after.facts["split"]} for one in found if one.kind == "style"]
    assert splits == [{"test"}] * CAPS["style"] + [{"validation"}] * CAPS["style"]
    colours = [one for one in found if one.kind == "colour"]
    assert len(colours) == 6
    assert all("train" not in (one.before.facts["split"], one.after.facts["split"]) for one in found)


def test_data_without_held_out_pictures_is_a_users_mistake():
    judge = Judge(cheap_features, known(emoji("red heart", split="train")))
    with pytest.raises(ValueError, match="splits test and validation hold no edits"):
        EditingEvaluation(None, judge, Drawing(), seed=0).edits(10)


def test_what_is_asked_came_true_when_the_true_target_is_drawn(evaluation):
    edits = evaluation.edits(1000)
    reported: list[int] = []
    shown = {way: evaluation.draw(way, edits, reported.append) for way in WAYS}
    assert sum(reported) == len(WAYS) * len(edits)
    assert len(evaluation.drawer.kept_of) == len(edits)
    scores = {way: evaluation.scores(way, edits, each.embeddings) for way, each in shown.items()}
    np.testing.assert_array_equal(scores[EDITED], scores[TRUE_CODES])
    kinds = np.array([one.kind for one in edits])
    asked = {way: scores[way][:, MEASURES.index("asked")] for way in WAYS}
    for kind in ("style", "colour"):  # what the few images of the judge's train split tell for certain
        assert scores[EDITED][kinds == kind].all()
        assert not asked[SOURCE][kinds == kind].any()
    for kind in editing.CONTROLS:
        assert scores[EDITED][kinds == kind].all()
        assert scores[SOURCE][kinds == kind].all()
    assert scores[SOURCE][:, MEASURES.index("kept")].all()
    assert asked[SOURCE].mean() < asked[REAL].mean() <= 1
    for way, each in shown.items():
        assert len(each.pictures) == len(edits), way

    report = rounded(evaluation.header("language") | evaluation.report(edits, scores))
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    assert report["changes"]["edits"] + report["controls"]["edits"] == len(edits) == len(report["edits"])
    assert report["kinds"]["style"]["ways"][EDITED]["all"] == {"mean": 1, "low": 1, "high": 1}
    assert report["kinds"]["style"]["ways"][SOURCE]["asked"]["mean"] == 0
    assert list(report["kinds"]) == [kind for kind in CAPS if kind in {one.kind for one in edits}]


class Seeing:
    """A judge that was told what it sees in every image, `nearest` of a thousand concepts first."""

    def __init__(self, references, nearest=(), **attributes):
        self.references, self.nearest, self.attributes = references, nearest, attributes
        self.left_out = []

    def concepts(self, embeddings, k, leave_out=None):
        self.left_out.append(leave_out)
        return [[each.facts["concept"] for each in self.nearest][:k] for _ in embeddings]

    def similarity_to(self, embeddings, concepts, leave_out=None):
        order = [each.facts["concept"] for each in self.nearest]
        return np.array([-order.index(one) if one in order else -1000 for one in concepts])

    def attribute(self, name, embeddings):
        return [self.attributes.get(name) for _ in embeddings]


def judged(change, nearest, way=EDITED, **attributes):
    references = known(*{one.key: one for one in (change.before, change.after, *nearest)}.values())
    judge = Seeing(references, nearest, **{"style": "noto", **attributes})
    (row,) = EditingEvaluation(None, judge, Drawing(), seed=0).scores(way, [change], np.zeros((1, 3)))
    assert judge.left_out == [[references.keys.index(change.after.key)] if way == REAL else None]
    return {name for name, true in zip(MEASURES, row, strict=True) if true}


OTHERS = [emoji(f"thing {number}") for number in range(NEAREST)]


def test_a_change_of_colour_is_judged_by_the_nearer_concept():
    change = edit("colour", RED, BLUE)
    assert judged(change, [BLUE, RED]) == {"asked", "kept", "style", "all"}
    assert judged(change, [RED, BLUE]) == {"kept", "style"}
    assert judged(change, [emoji("green heart"), BLUE, RED], style="twemoji") == {"asked", "kept"}
    assert judged(change, [*OTHERS, BLUE, RED]) == {"asked", "style"}
    assert judged(change, [BLUE, RED], way=REAL) == {"asked", "kept", "style", "all"}


def test_a_real_target_is_compared_with_both_concepts_in_other_styles():
    change, others = (
        edit("colour", RED, BLUE),
        [emoji("red heart", "twemoji"), emoji("blue heart", "twemoji")],
    )
    pictures = [RED, BLUE, *others]
    references = known(*pictures)
    references.embeddings[:] = 0
    for key, row in {RED.key: [1, 0, 0], BLUE.key: [1, 0, 0], others[0].key: [0, 1, 0]}.items():
        references.embeddings[references.keys.index(key)][:3] = row
    references.embeddings[references.keys.index(others[1].key)][:3] = [0.6, 0.8, 0]
    judge = Judge(cheap_features, references)
    judge.attribute = lambda name, embeddings: ["noto"]
    evaluation = EditingEvaluation(None, judge, Drawing(), seed=0)
    target = references.embeddings[[references.keys.index(BLUE.key)]]
    assert evaluation.scores(REAL, [change], target)[0, MEASURES.index("asked")]


def test_what_is_added_may_be_missing_from_what_is_kept():
    change = edit("add", CLOUD, RAIN)
    assert judged(change, [CLOUD, *OTHERS, RAIN]) == {"kept", "style"}
    assert judged(change, [*OTHERS[1:], RAIN]) == {"asked", "kept", "style", "all"}


def test_a_profession_is_judged_by_role_and_the_rest_by_gender_and_tone():
    change = edit("profession", COOK, SINGER)
    assert judged(change, [COOK], role="singer") == {"asked", "kept", "style", "all"}
    assert judged(change, [SINGER], role="cook") == {"kept", "style"}
    assert judged(change, [person("woman", "singer", "dark")], role="singer") == {"asked", "style"}


def test_a_role_that_is_gone_is_judged_by_the_nearer_concept():
    man = person("man", None, "dark")
    change = edit("remove", COOK, man)
    assert judged(change, [man, COOK], role=None) == {"asked", "kept", "style", "all"}
    assert judged(change, [COOK, man], role=None) == {"kept", "style"}


def test_nothing_must_change_in_a_control():
    change = edit("already", COOK)
    assert judged(change, [COOK, SINGER]) == {"asked", "kept", "style", "all"}
    assert judged(change, [SINGER, COOK]) == {"kept", "style"}
    assert judged(change, [COOK], style="twemoji") == {"asked", "kept"}


def test_prompts_with_words_ask_for_another_style_or_tone(evaluation):
    prompts = evaluation.texts(10)
    assert [one.asked[0] for one in prompts] == ["style"] * 5 + ["skin_tone"] * 5
    for one in prompts:
        name, value = one.asked
        assert one.words == (f"{value} style" if name == "style" else f"{value} skin")
        assert one.first.facts[name] not in (None, value)
        assert one.first.facts["split"] == "test"
    shown = evaluation.draw_mixed(prompts, NOTHING)  # the oracle draws the image back
    assert [one for _, one in evaluation.drawer.asked] == [one.words for one in prompts]
    assert evaluation.drawer.kept_of == []
    scores = evaluation.scores_with_text(prompts, shown.embeddings)
    assert scores.shape == (10, len(WITH_TEXT))
    assert scores.mean(axis=0).tolist() == [0, 1, 0]


def test_text_and_picture_must_both_be_there():
    (prompt,) = [editing.Mixed("", COOK, None, "light skin", ("skin_tone", "light"))]
    pale, other = person("man", "cook", "light"), person("man", "singer", "light")
    for nearest, tone, row in (
        ([pale], "light", [True, True, True]),
        ([COOK], "dark", [False, True, False]),
        ([other], "light", [True, False, False]),
    ):
        judge = Seeing(known(COOK, pale, other), nearest, skin_tone=tone)
        evaluation = EditingEvaluation(None, judge, Drawing(), seed=0)
        assert evaluation.scores_with_text([prompt], np.zeros((1, 3))).tolist() == [row]


def test_prompts_of_two_pictures_differ_in_style_and_concept(evaluation):
    prompts = evaluation.images(12)
    assert len({one.name for one in prompts}) == 12
    for one in prompts:
        assert one.first.set != one.second.set
        assert one.first.facts["concept"] != one.second.facts["concept"]
    shown = evaluation.draw_mixed(prompts, NOTHING)
    scores = evaluation.scores_with_image(prompts, shown.embeddings)
    first, second, either, both = scores.T
    assert first.all()
    np.testing.assert_array_equal(either, first | second)
    np.testing.assert_array_equal(both, first & second)
    report = evaluation.report_mixed(prompts, scores, WITH_IMAGE)
    assert (report["prompts"], report["first"]["mean"]) == (12, 1)


def test_without_prompts_there_is_no_number(evaluation):
    shown = evaluation.draw_mixed([], NOTHING)
    scores = evaluation.scores_with_image([], shown.embeddings)
    assert evaluation.report_mixed([], scores, WITH_IMAGE) is None
    assert evaluation.report_mixed([], evaluation.scores_with_text([], shown.embeddings), WITH_TEXT) is None
