import numpy as np
import pytest

from pictish.data.tokens import TokenizedImage
from pictish.lm.config import DefaultsConfig, ImageGenerationConfig
from pictish.pipelines.settings import Drawing
from pictish.recipes.starter.captions import prompts
from pictish.recipes.starter.evaluation.generation import (
    BATCH,
    COMPOSED,
    CONCEPT,
    GENERATED,
    REAL,
    SCALES,
    STYLED,
    TRUE_CODES,
    WAYS,
    GenerationEvaluation,
    Shown,
    curve_size,
    share,
)
from pictish.recipes.starter.evaluation.judge import Judge, read_references
from pictish.recipes.starter.phrases import Picture
from tests.evaluation.emoji import HELD_OUT, cheap_features, write_starter_data


class Catalogue:
    """A text-to-image model that knows every image by heart; its codes are their indices.

    Below guidance 2 it draws another image. Also its own tokenizer and reconstructor, which lose nothing.
    """

    fingerprint = "0123456789ab"
    usual = ImageGenerationConfig()

    def __init__(self, judge: Judge) -> None:
        self.language = self.model = self.reconstructor = self.tokenizer = self
        self.defaults = DefaultsConfig(threshold=0.7)
        self.pictures = [judge.references.picture(index) for index in range(len(judge.references))]
        self.known = {}
        for index, facts in enumerate(judge.references.facts):
            for prompt in prompts(Picture(judge.references.keys[index], b"", facts)):
                self.known[prompt] = index
        self.calls: list[tuple[list[str], list[int]]] = []

    def tokens(self, said, generators, config, **rest):
        assert len(said) <= BATCH
        reported = [prompt for (prompt,) in said]
        self.calls.append((reported, [generator.initial_seed() for generator in generators]))
        scale = config.guidance_scale
        wrong = scale is not None and scale < 2
        return [self._coded((self.known[prompt] + 7 * wrong) % len(self.pictures)) for prompt in reported]

    def tokenize(self, pictures, threshold):
        assert threshold == self.defaults.threshold, "as the language model was trained"
        return [self._coded(self.pictures.index(picture)) for picture in pictures]

    def _coded(self, index):
        return TokenizedImage(np.array([index]), None, (8, 8), (64, 64), self.fingerprint, 64)

    def __call__(self, tokens, size, *, generators, drawing, **rest):
        assert len(tokens) == len(generators)
        return [self.pictures[int(token.ids[0])].resize((size, size)) for token in tokens]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    data = write_starter_data(tmp_path_factory.mktemp("data"))
    return Judge(cheap_features, read_references(data, cheap_features))


@pytest.fixture
def evaluation(judge):
    return GenerationEvaluation(Catalogue(judge), judge, Drawing(), seed=0)


def ignore(count: int) -> None:
    pass


def shown(evaluation, asked):
    return {way: evaluation.draw(way, asked, ignore) for way in WAYS}


def test_seen_captions_are_those_of_training_every_other_one_with_its_style(evaluation, judge):
    asked = evaluation.seen(100)
    facts = [judge.references.facts[each.reference] for each in asked]
    assert len({each["concept"] for each in facts}) == len(asked) == 4 + 11  # each concept of train once
    assert {each["split"] for each in facts} == {"train"}
    for number, (each, known) in enumerate(zip(asked, facts, strict=True)):
        assert each.names_style == (number % 2 == 0)
        assert each.prompt in prompts(Picture(judge.references.keys[each.reference], b"", known))
        assert each.prompt.endswith(f", {known['set']} style") == each.names_style
    assert len({known["set"] for known in facts}) == 3


def test_prompts_follow_from_the_seed_and_fewer_are_the_first_of_them(evaluation, judge):
    assert evaluation.seen(5) == evaluation.seen(100)[:5]
    other = GenerationEvaluation(Catalogue(judge), judge, Drawing(), seed=1)
    assert other.seen(5) != evaluation.seen(5)


def test_held_out_prompts_name_a_composition_that_train_does_not_have_and_its_style(evaluation, judge):
    asked = evaluation.held_out(100)
    assert len(asked) == 3
    for each in asked:
        facts = judge.references.facts[each.reference]
        assert (facts["role"], facts["skin_tone"], facts["gender"]) == HELD_OUT
        assert each.prompt == f"woman singer with dark skin, {facts['set']} style"
    assert len(evaluation.held_out(2)) == 2


def test_a_perfect_model_reaches_its_ceiling_everywhere(evaluation):
    asked = [each for each in evaluation.seen(100) if each.names_style]
    report = evaluation.report_seen(asked, shown(evaluation, asked))
    for way in (GENERATED, TRUE_CODES):
        assert set(report["ways"][way]) == {*CONCEPT, *STYLED}
        assert all(number["mean"] == pytest.approx(1, abs=1e-3) for number in report["ways"][way].values())
    assert all(part == pytest.approx(1) for part in report["share"].values())
    held = evaluation.held_out(100)
    report = evaluation.report_held_out(held, shown(evaluation, held))
    assert report["prompts"] == 3
    for way in WAYS:
        assert list(report["ways"][way]) == list(COMPOSED)
        assert report["ways"][way]["style"]["mean"] == 1
    assert report["ways"][GENERATED] == report["ways"][REAL] == report["ways"][TRUE_CODES]


def test_a_real_picture_is_no_match_of_its_own(evaluation):
    asked = evaluation.seen(100)
    real = evaluation.report_seen(asked, shown(evaluation, asked))["ways"][REAL]
    assert (real["strict@1"], real["strict@5"]) == (None, None)
    assert 0.5 < real["similarity"]["mean"] < 0.999
    assert real["hit@5"]["mean"] > 0.9


def test_a_model_that_draws_something_else_hits_nothing(evaluation, judge):
    asked = evaluation.seen(8)
    wrong = [(each.reference + 7) % len(judge.references) for each in asked]
    pictures = [judge.references.picture(index) for index in wrong]
    drawn = Shown(pictures, judge.embed(pictures))
    values = evaluation.concept_values(asked, drawn, False)
    assert values.shape == (8, len(CONCEPT))
    own = [judge.references.facts[each.reference]["concept"] for each in asked]
    other = [judge.references.facts[index]["concept"] for index in wrong]
    assert all(one != two for one, two in zip(own, other, strict=True))
    assert not values[:, 0].any()
    assert (values[:, 2] < 0.999).all()


def test_all_is_right_only_where_every_attribute_is(evaluation, judge):
    asked = evaluation.held_out(3)
    drawn = shown(evaluation, asked)
    references = judge.references
    other = [
        next(
            index
            for index in references.of_split("train")
            if references.facts[index]["style"] == references.facts[each.reference]["style"]
            and references.facts[index]["gender"] == "man"
            and references.facts[index]["role"] == "singer"
            and references.facts[index]["skin_tone"] == "dark"
        )
        for each in asked
    ]
    pictures = [references.picture(index) for index in other]
    drawn[GENERATED] = Shown(pictures, judge.embed(pictures))
    report = evaluation.report_held_out(asked, drawn)
    found = {name: number["mean"] for name, number in report["ways"][GENERATED].items()}
    assert found == {"skin_tone": 1, "gender": 0, "role": 1, "composition": 0, "style": 1, "all": 0}


def test_every_prompt_has_a_seed_of_its_own_whatever_is_drawn_beside_it(evaluation):
    asked = evaluation.seen(BATCH + 3)
    evaluation.draw(GENERATED, asked, ignore)
    evaluation.draw(GENERATED, asked[3:5], ignore)
    (first, second, third) = evaluation.drawer.calls
    assert (len(first[0]), len(second[0])) == (BATCH, 3)
    assert len(set(first[1] + second[1])) == BATCH + 3
    assert third == (first[0][3:5], first[1][3:5])


def test_the_curve_names_its_best_scales(evaluation):
    reported: list[int] = []
    curve = evaluation.curve(evaluation.seen(4), reported.append)
    assert [point["scale"] for point in curve["points"]] == list(SCALES)
    assert curve["best"] == dict.fromkeys(CONCEPT, 2.0)  # the first of those that draw what was asked for
    assert curve["points"][0]["hit@1"]["mean"] < curve["points"][-1]["hit@1"]["mean"] == 1
    assert sum(reported) == 4 * len(SCALES)
    assert ImageGenerationConfig().guidance in SCALES


def test_a_share_of_nothing_is_unknown():
    ways = {
        GENERATED: {"a": {"mean": 0.2}, "b": {"mean": 0.1}},
        TRUE_CODES: {"a": {"mean": 0.8}, "b": {"mean": 0}},
    }
    assert share(ways) == {"a": pytest.approx(0.25), "b": None}


def test_the_curve_takes_a_quarter_of_the_prompts_but_twenty_where_there_are_so_many():
    assert [curve_size(number) for number in (3, 24, 80, 200)] == [3, 20, 20, 50]


def test_data_without_a_held_out_split_is_a_users_mistake(judge, tmp_path):
    import shutil

    data = write_starter_data(tmp_path / "data")
    shutil.rmtree(data / "composition-test")
    alone = Judge(cheap_features, read_references(data, cheap_features))
    with pytest.raises(ValueError, match="no split composition-test"):
        GenerationEvaluation(Catalogue(judge), alone, Drawing(), seed=0).held_out(1)
