"""The five stages of LLaDA-V from one config, and how samples become documents of a model that sees."""

import logging

import numpy as np
import pytest
import torch

from pictish.configs import load, parse
from pictish.data.loader import ImageBytes
from pictish.data.mixture import Report, Slot
from pictish.data.samples import Dialogue, Message, Pair, Question, Video, parse_sample
from pictish.lm.config import DropoutConfig, SourceConfig, TrainConfig
from pictish.lm.documents import Maker
from pictish.lm.model import UnifiedModel
from pictish.lm.packing import Packed, pack
from pictish.lm.train import train
from pictish.lm.trainable import shares, trainable
from pictish.lm.vocabulary import text_ids
from tests.lm.seeing import noise, png, seeing_model, write_stages

STAGES = ("align", "single", "several", "reasoning", "balanced")


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return seeing_model()


def maker(model: UnifiedModel, **changes) -> Maker:
    settings = {
        "vocabulary": model.vocabulary,
        "encode": lambda text: text_ids(model.text_tokenizer, text),
        "eos": model.eos,
        "sources": {"own": SourceConfig(paths=(), **changes)},
        "dropout": DropoutConfig(),
        "longest": 4096,
        "encode_images": None,
        "seed": 0,
        "vision": model.vision,
        "text_tokenizer": model.text_tokenizer,
    }
    return Maker(**settings)


def made(model: UnifiedModel, sample, **changes):
    return maker(model, **changes).make(sample, Slot(0, "own", 0, 0), {})


def said(model: UnifiedModel, document, which: np.ndarray) -> str:
    """The text of the ids at these places."""
    return model.text_tokenizer.decode(document.ids[which])


def image(seed: int, *size: int) -> ImageBytes:
    return ImageBytes(png(seed, *size), str(seed))


def test_all_stages_run_from_one_config_and_say_what_is_frozen(tmp_path, monkeypatch, caplog):
    write_stages(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = parse(TrainConfig, load("tiny/lladav", ["log_every=2"]), "tiny/lladav")
    assert tuple(stage.name for stage in config.stages) == STAGES
    report = Report()
    with caplog.at_level(logging.INFO, logger="pictish"):
        folder = train(config, tmp_path / "run", None, "cpu", report=report)
    assert not report.skipped
    told = {stage: [m for m in caplog.messages if m.startswith(f"stage {stage}:")] for stage in STAGES}
    assert all(len(lines) == 2 for lines in told.values())
    align = told["align"][1].split("; ")
    assert [part.rpartition(") ")[2] for part in align] == ["frozen", "100.0 % trained", "frozen", "frozen"]
    assert told["single"][1].count("100.0 % trained") == 4
    made = UnifiedModel.from_folder(folder)
    assert made.image_tokens is None
    assert made.masked is not None
    assert made.vision is not None
    assert made.vision.config.tiles is not None
    assert made.vision.config.tower.settings["num_hidden_layers"] == 2, "the last one is left away"
    assert made.text_tokenizer.chat_template


def test_a_stage_that_trains_the_projector_changes_nothing_else(model):
    with trainable(model, ["vision.projector.*"]):
        assert {n for n, p in model.named_parameters() if p.requires_grad} == {
            f"vision.projector.{n}" for n in ("0.weight", "0.bias", "2.weight", "2.bias")
        }
        assert sum("frozen" in line for line in shares(model)) == 3


def test_a_dialogue_learns_what_the_assistant_says_and_marks_what_the_template_does(model):
    turns = (
        Message("user", (image(0, 16, 16), "What is it?")),
        Message("assistant", ("Noise.",)),
        Message("user", ("Which <|eot_id|> kind?",)),
        Message("assistant", ("White.",)),
    )
    document = made(model, Dialogue("s", "k", turns), system="Be brief.")
    assert said(model, document, document.learn) == "Noise.<|eot_id|>White.<|eot_id|><eos>"
    marks = said(model, document, document.structure)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert marks == (
        "<bos>" + header.format("") + "<|eot_id|>" + header.format("") + "<|eot_id|>"
        + header.format("assistant") + header.format("") + "<|eot_id|>" + header.format("assistant")
    )  # fmt: skip
    assert (document.ids == model.text_tokenizer.convert_tokens_to_ids("<|eot_id|>")).sum() == 5, (
        "typed, it is text"
    )
    first = said(model, document, document.turns == 0)
    assert first.count("Be brief.") == first.count("Noise.<|eot_id|>") == 1
    assert said(model, document, document.turns == 1).endswith("White.<|eot_id|><eos>")
    ((place, seen),) = document.pictures
    assert seen.layout.views == 2, "whole and one tile"
    assert not document.learn[place : place + seen.layout.length].any()


def test_suffixes_are_added_to_some_or_all_that_users_say(model):
    turns = tuple(Message(role, (role,)) for role in ("user", "assistant") * 20)
    dialogue = Dialogue("s", "k", turns)
    everyone = np.ones(10**4, bool)

    def count(**changes):
        document = made(model, dialogue, turn_suffix=" /think", **changes)
        return said(model, document, everyone[: len(document)]).count("user /think")

    assert count() == 20
    assert count(turn_suffix_share=0) == 0
    assert 3 < count(turn_suffix_share=0.5) < 17


def test_several_pictures_are_padded_and_frames_are_pooled(model):
    cells = model.vision.cells[0] * model.vision.cells[1]
    two = Dialogue("s", "k", (Message("user", (image(0), " or ", image(1))), Message("assistant", ("a",))))
    document = made(model, two)
    assert [seen.layout.length for _, seen in document.pictures] == [cells + 1] * 2
    video = Video((image(0), image(1), image(2)))
    document = made(model, Dialogue("s", "k", (Message("user", (video,)), Message("assistant", ("a",)))))
    assert [seen.layout.length for _, seen in document.pictures] == [2 * 3] * 3
    first, second, third = (place for place, _ in document.pictures)
    assert second - first == third - second == 6


def test_pairs_and_questions_of_a_model_that_only_sees(model):
    pair = made(model, Pair("s", "k", image(0), ("noise",), {}), caption=0.0)
    assert pair.task == "caption"
    assert said(model, pair, pair.learn) == "noise<eos>"
    assert pair.pictures[0][0] == 0, "no markers"
    question = made(model, Question("s", "k", image(0), (("What?", "Noise."), ("Where?", "Here."))))
    assert said(model, question, question.learn) == "Noise.<|eot_id|>Here.<|eot_id|><eos>"
    assert len(question.pictures) == 1


def test_what_cannot_be_seen_or_written_is_a_damaged_sample(model):
    picture = Dialogue("s", "k", (Message("user", ("draw",)), Message("assistant", (image(0),))))
    with pytest.raises(ValueError, match="writes none"):
        made(model, picture)
    with pytest.raises(ValueError, match="cannot be"):
        made(model, Pair("s", "k", ImageBytes(b"\x89PNG\r\n\x1a\nbroken", "x"), ("a",), {}))


def test_packed_pictures_are_seen_where_they_stand(model):
    documents = [made(model, Pair("s", str(n), image(n), (f"noise {n}",), {})) for n in range(3)]
    with torch.no_grad():
        alone = [model(_whole(pack([[one]], len(one)))).logits[0] for one in documents]
        rows = pack([documents[:2], documents[2:]], 300)
        together = model(_whole(rows)).logits
        parts = Packed.join(rows.split(1)).split(2)
        again = model(_whole(parts[0])).logits
        other = model(
            _whole(pack([[made(model, Pair("s", "0", image(7), ("noise 0",), {}))]], len(documents[0])))
        )
    ends = np.cumsum([0, *map(len, documents[:2])])
    for number, one in enumerate(alone[:2]):
        assert torch.allclose(together[0, ends[number] : ends[number + 1]], one, atol=1e-4)
    assert torch.allclose(together[1, : len(documents[2])], alone[2], atol=1e-4)
    assert torch.equal(again, together)
    assert (other.logits[0, -1] - alone[0][-1]).abs().max() > 1e-3, "another picture, another answer"


def _whole(packed: Packed) -> Packed:
    """Rows whose documents see all of themselves."""
    from dataclasses import replace

    return replace(packed, blocks=packed.documents)


def test_a_saved_model_sees_the_same(model, tmp_path):
    model.save(tmp_path / "lm", dtype=torch.float32)
    again = UnifiedModel.from_folder(tmp_path / "lm")
    document = made(model, Pair("s", "k", image(0, 50, 20), ("noise",), {}))
    packed = _whole(pack([[document]], len(document)))
    with torch.no_grad():
        assert torch.equal(model(packed).logits, again(packed).logits)
    assert again.vision.encoder.fingerprint == model.vision.encoder.fingerprint
    (tmp_path / "lm" / "vision.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"vision\.safetensors: damaged"):
        UnifiedModel.from_folder(tmp_path / "lm")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "no list"),
        ([], "no list"),
        ([{"role": "robot", "content": "a"}], "no role"),
        ([{"role": "user", "content": "a"}], "take turns"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "take turns"),
        ([{"role": "assistant", "content": "a"}], "take turns"),
        ([{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}], "user is empty"),
        ([{"role": "user", "content": 5}, {"role": "assistant", "content": "b"}], "no text and no list"),
        ([{"role": "user", "content": [{"sound": "x"}]}, {"role": "assistant", "content": "b"}], "none of"),
        ([{"role": "user", "content": [{"image": "a.png"}]}, {"role": "assistant", "content": "b"}], "a.png"),
        ([{"role": "user", "content": [{"video": []}]}, {"role": "assistant", "content": "b"}], "1 to 1000"),
    ],
)
def test_dialogues_that_are_none_are_refused_in_a_line(messages, message):
    import json

    facts = json.dumps({"messages": messages}).encode()
    with pytest.raises(ValueError, match=message) as caught:
        parse_sample("shard", "key", {"json": facts})
    assert "\n" not in str(caught.value)


def test_a_picture_of_an_unusual_shape_is_seen(model):
    for size in ((400, 1), (1, 400), (1, 1)):
        seen = model.vision.look(noise(0, *size))
        assert seen.views.shape == (seen.layout.views, 16, 16, 3)
