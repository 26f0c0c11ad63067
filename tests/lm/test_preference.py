"""Preference tuning: DPO's loss and reference, pairs of answers and of drawings, resume, bad input."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from pictish.configs import load, parse
from pictish.data.shards import ShardFile
from pictish.lm.config import MaskedForm, Preference, TrainConfig
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.new_model import new_model
from pictish.lm.objective import OBJECTIVES
from pictish.lm.packing import Packed, pack
from pictish.lm.preference import Reference
from pictish.lm.sequence import Codes, Document, answer, build, drawing, preference
from pictish.lm.train import train
from tests.lm.pictures import CODES, COLOURS, FINGERPRINT, THINGS, picture
from tests.lm.test_fsdp import runs
from tests.lm.test_train import IMAGE_TOKENS, Killed, killed_at, lines
from tests.lm.tiny import tiny_model, tiny_tokenizer, tiny_unified


def pairs_shard(path: Path, count: int, seed: int = 0) -> None:
    """Answers and drawings by turns: what shows the named colour is chosen, another colour rejected."""
    chance = np.random.default_rng(seed)
    with ShardFile(path) as shard:
        for number in range(count):
            colour, other = chance.choice(COLOURS, 2, replace=False)
            thing = chance.choice(THINGS)
            right, wrong = (
                picture(f"a {name} {thing}", chance).to_bytes() for name in (str(colour), str(other))
            )
            if number % 2:
                said = {"question": "which colour?", "chosen": str(colour), "rejected": str(other)}
                members = {"tokens": right}
            else:
                said = {
                    "prompt": f"a {colour} {thing}",
                    "chosen": "chosen.tokens",
                    "rejected": "other.tokens",
                }
                members = {"chosen.tokens": right, "other.tokens": wrong}
            shard.write(f"{number:04d}", {**members, "json": json.dumps({"preference": said}).encode()})


@pytest.fixture
def data(tmp_path) -> Path:
    pairs_shard(tmp_path / "pairs" / "0.tar", 40)
    pairs_shard(tmp_path / "unseen" / "0.tar", 12, seed=9)
    tiny_unified("llama").save(tmp_path / "base", dtype=torch.float32)
    settings = tmp_path / "base" / "config.yaml"  # of the image tokenizer of the shards
    text = settings.read_text()
    settings.write_text(text.replace("0" * 12, IMAGE_TOKENS.fingerprint))
    return tmp_path


def config_for(data: Path, *overrides: str) -> TrainConfig:
    places = [
        f"model.base.folder={data}/base",
        f"data.train.pairs.paths=[{data}/pairs/*.tar]",
        "data.validation.unseen={paths: [%s/unseen/*.tar]}" % data,  # noqa: UP031
    ]
    return parse(TrainConfig, load("tiny/preference", [*places, *overrides]), "tiny/preference")


def hand_made(model: UnifiedModel) -> list[tuple[Document, Document]]:
    """Pairs of an answer and of drawings of different length."""

    def made(task, parts):
        return build(task, parts, model.vocabulary, model.text_tokenizer.encode, model.eos)

    seen = Codes(np.array([3, 1, 4]))
    answers = [made("answer", answer(seen, "what?", reply)) for reply in ("a red apple", "two pears")]
    drawings = [made("drawing", drawing("a red apple", Codes(np.array(ids)))) for ids in ([5, 9, 2, 6], [8])]
    return [tuple(answers), tuple(drawings)]


def changed(model: UnifiedModel, seed: int) -> None:
    """As if it had been trained."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def said_of(model: UnifiedModel, document: Document) -> torch.Tensor:
    """Log-probabilities of the learned tokens of one document alone, by the plain language model."""
    ids = torch.from_numpy(document.ids)
    logits = model.language(input_ids=ids[None], use_cache=False).logits[0, :-1]
    chosen = logits.log_softmax(dim=-1).gather(1, ids[1:, None])[:, 0]
    return chosen[torch.from_numpy(document.learn[1:])]


def packed_pairs(pairs, length: int = 96) -> Packed:
    joined = [preference(*pair) for pair in pairs]
    return pack([joined[:1], joined[1:]], length) if len(joined) == 2 else pack([joined], length)


@pytest.mark.parametrize("normalized", [False, True])
def test_the_loss_is_the_plain_formula(normalized):
    model = tiny_unified("llama").eval()
    pairs = hand_made(model)
    before = {one: said_of(model, one) for pair in pairs for one in pair}
    reference = Reference(model, {name for name, _ in model.named_parameters()})
    changed(model, 1)
    config = Preference(beta=0.3, length_normalized=normalized)
    objective = replace(OBJECTIVES["preference"](config, model.vocabulary, None), reference=reference)
    wanted, rewards = [], []
    for pair in pairs:
        ratios = [said_of(model, one) - before[one] for one in pair]
        own = [0.3 * float(ratio.mean() if normalized else ratio.sum()) for ratio in ratios]
        rewards.append(own)
        wanted.append(-math.log(1 / (1 + math.exp(-(own[0] - own[1])))))
    for rows in (packed_pairs(pairs), pack([[preference(*pair) for pair in pairs]], 96)):
        packed = objective.prepare(rows, torch.Generator(), 0.0)
        assert packed.learned == 2, "a pair counts once"
        packed = objective.referenced(packed)
        losses = objective.losses(model(packed, True), packed)
        assert float(losses.total.detach()) == pytest.approx(sum(wanted), abs=1e-4)
        assert losses.by_task.tolist() == pytest.approx([0, wanted[1], 0, wanted[0], 0, 0, 0], abs=1e-4)
        right = sum(chosen > rejected for chosen, rejected in rewards)
        both = [sum(own) for own in zip(*rewards, strict=True)]
        assert losses.preference.tolist() == pytest.approx([2, right, *both], abs=1e-4)


def test_the_reference_stays_what_the_model_was_and_leaves_it_as_it_is():
    model = tiny_unified("qwen3").train()
    packed = OBJECTIVES["preference"](Preference(), model.vocabulary, None).prepare(
        packed_pairs(hand_made(model)), torch.Generator(), 0.0
    )
    reference = Reference(model, {name for name, _ in model.named_parameters()})
    first = reference(packed)
    changed(model, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.equal(reference(packed), first)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert not first.requires_grad


def test_a_pair_is_two_documents_of_one_row():
    model = tiny_unified("llama")
    (chosen, rejected), _ = hand_made(model)
    rows = pack([[preference(chosen, rejected), preference(rejected, chosen)]], 192)
    for number, one in enumerate((chosen, rejected, rejected, chosen), 1):
        inside = rows.documents[0] == number
        assert rows.ids[0, inside].tolist() == one.ids.tolist()
        assert rows.positions[0, inside].tolist() == list(range(len(one)))
    with pytest.raises(ValueError, match="chosen and rejected are the same"):
        preference(chosen, chosen)


def test_training_raises_the_margin_and_resumes_bit_for_bit(data):
    config = config_for(data)
    train(config, data / "whole", IMAGE_TOKENS, "cpu")
    rows = lines(data / "whole")
    learned = [row for row in rows if "loss" in row]
    margins = [row["margin"] for row in learned]
    assert margins[-1] > margins[0] + 0.5, "of the training pairs"
    assert learned[-1]["loss"] < learned[0]["loss"] <= math.log(2) + 0.1
    assert learned[-1]["accuracy"] > 0.8
    assert all(row["margin"] == pytest.approx(row["reward_chosen"] - row["reward_rejected"], abs=1e-4)
               for row in learned)  # fmt: skip
    unseen = [row for row in rows if "validation_loss" in row]
    assert [set(row) >= {"validation_accuracy", "validation_margin"} for row in unseen] == [True, True]
    assert unseen[-1]["validation_margin"] > 0, "of pairs that it has not seen"
    for step in (4, 8):
        with pytest.raises(Killed):
            train(config, data / "broken", IMAGE_TOKENS, "cpu", progress=killed_at({step}))
    train(config, data / "broken", IMAGE_TOKENS, "cpu")
    assert lines(data / "broken") == rows
    whole, broken = (load_file(data / run / "model" / "model.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_the_first_step_prefers_nothing_and_parts_of_it_give_the_same(data):
    stage = "stages=[{name: only, steps: 4, learning_rate: 1.0e-3, warmup: 0}]"
    train(config_for(data, stage, "log_every=1"), data / "one", IMAGE_TOKENS, "cpu")
    four = config_for(data, stage, "log_every=1", "data.gradient_accumulation_steps=4", "checkpointing=true")
    train(four, data / "four", IMAGE_TOKENS, "cpu")
    one, parts = ([row["loss"] for row in lines(data / run) if "loss" in row] for run in ("one", "four"))
    assert one[0] == pytest.approx(math.log(2), abs=1e-6)
    assert one[1] != one[0]
    assert one == pytest.approx(parts, abs=1e-4)


def test_of_lora_the_reference_is_the_base_and_another_base_is_refused(data):
    """Adapters add nothing at first, and rows that are trained beside them have starting values, too."""
    config = config_for(data, "model.base.lora=4")
    train(config, data / "whole", IMAGE_TOKENS, "cpu")
    rows = [row for row in lines(data / "whole") if "loss" in row]
    assert rows[-1]["margin"] > rows[0]["margin"]
    with pytest.raises(Killed):
        train(config, data / "broken", IMAGE_TOKENS, "cpu", progress=killed_at({7}))
    file = data / "base" / "model.safetensors"
    kept = file.read_bytes()
    weights = load_file(file)
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"another model\.base\.folder: its fingerprint was"):
        train(config, data / "broken", IMAGE_TOKENS, "cpu")
    file.write_bytes(kept)
    train(config, data / "broken", IMAGE_TOKENS, "cpu")
    whole, broken = (load_file(data / run / "model" / "model.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_an_inner_adaptor_is_tuned_beside_its_base(data):
    stage = "stages=[{name: only, steps: 6, learning_rate: 3.0e-3, warmup: 0}]"
    config = config_for(data, "adaptor={kind: general}", stage, "log_every=1")
    train(config, data / "whole", IMAGE_TOKENS, "cpu")
    rows = [row for row in lines(data / "whole") if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["margin"] > 0
    with pytest.raises(Killed):
        train(config, data / "broken", IMAGE_TOKENS, "cpu", progress=killed_at({5}))
    train(config, data / "broken", IMAGE_TOKENS, "cpu")
    assert lines(data / "broken") == lines(data / "whole")


def test_what_does_not_fit_is_refused_in_one_line(data):
    with ShardFile(data / "plain" / "0.tar") as shard:
        tokens = picture("a red car", np.random.default_rng(0)).to_bytes()
        shard.write("0000", {"tokens": tokens, "txt": b"a red car"})
    plain = f"data.train.pairs.paths=[{data}/plain/*.tar]"
    with pytest.raises(ValueError, match=r"0\.tar/0000: no preference pair; objective\.kind: preference"):
        train(config_for(data, plain), data / "a", IMAGE_TOKENS, "cpu")
    with pytest.raises(ValueError, match=r"a preference pair; only objective\.kind: preference learns"):
        train(config_for(data, "objective={kind: autoregressive}"), data / "b", IMAGE_TOKENS, "cpu")
    with pytest.raises(ValueError, match="chosen and rejected together are longer than a row of 16 tokens"):
        train(config_for(data, "data.length=16"), data / "c", IMAGE_TOKENS, "cpu")
    with pytest.raises(
        ValueError, match=r"preference tunes a trained model; model\.base: \{kind: pretrained"
    ):
        parse(TrainConfig, load("tiny/lm", ["objective={kind: preference}"]), "tiny/lm")
    tokens, text_tokenizer = ImageTokens(FINGERPRINT, CODES, 16, 12, 16), tiny_tokenizer()
    tiny_model("llama", len(text_tokenizer), dtype=torch.float32).save_pretrained(data / "plain-base")
    text_tokenizer.save_pretrained(data / "plain-base")
    base = config_for(data, f"model.base.folder={data}/plain-base").model.base
    new_model(base, None, tokens, features=False, seed=0, masked=MaskedForm()).save(data / "masked")
    with pytest.raises(ValueError, match=r"holds a masked model; only objective\.kind masked trains it"):
        train(config_for(data, f"model.base.folder={data}/masked"), data / "d", tokens, "cpu")


def test_gradients_flow_to_the_chosen_and_from_the_rejected():
    model = tiny_unified("llama")
    pair = hand_made(model)[1]
    reference = Reference(model, {name for name, _ in model.named_parameters()})
    objective = replace(OBJECTIVES["preference"](Preference(), model.vocabulary, None), reference=reference)
    packed = objective.prepare(pack([[preference(*pair)]], 96), torch.Generator(), 0.0)
    before = [float(said_of(model, one).sum()) for one in pair]
    packed = objective.referenced(packed)
    objective.losses(model(packed, True), packed).total.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * F.normalize(parameter.grad.flatten(), dim=0).view_as(parameter)
    after = [float(said_of(model, one).sum()) for one in pair]
    assert after[0] - before[0] > after[1] - before[1]


@pytest.mark.slow
def test_several_processes_learn_what_one_does_also_with_weights_in_shards(data):
    """A pair is in one row, and so in one process and step."""
    pairs_shard(data / "shards" / "0.tar", 40)
    pairs_shard(data / "validation" / "0.tar", 12, seed=9)
    settings = [
        f"model.base={{kind: pretrained, folder: {data}/base}}",
        "objective={kind: preference}",
        "stages=[{name: only, steps: 6, warmup: 2}]",
        "log_every=1",
        "checkpoint_every=3",
        "validate_every=6",
        "ema=0.9",
    ]
    runs(
        data,
        {"run": "one", "processes": 1, "settings": settings},
        {"run": "ddp", "processes": 2, "stop": 4, "settings": settings},
        {"run": "ddp-again", "like": "ddp", "processes": 2, "settings": settings},
        {"run": "fsdp", "like": "ddp", "processes": 2, "fsdp": True, "settings": settings},
    )
    wanted = lines(data / "one")
    assert wanted[-1]["validation_margin"] != 0
    names = {"loss", "margin", "accuracy", "reward_chosen", "gradient_norm", "validation_margin"}
    for run in ("ddp-again", "fsdp"):
        for row, other in zip(wanted, lines(data / run), strict=True):
            same = {name: row[name] for name in names & row.keys()}
            assert {name: other[name] for name in same} == pytest.approx(same, rel=1e-3, abs=1e-4), run
