"""Training: it learns, it resumes bit for bit wherever it was stopped, stages train what they name."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaMLP

from pictish.configs import load, parse
from pictish.data.loader import ImageBytes
from pictish.data.mixture import Mixture
from pictish.data.shards import ShardFile
from pictish.data.tokens import EncodedImage, TokenizedImage
from pictish.lm import documents
from pictish.lm import train as trainer
from pictish.lm.autoregressive import Prompt, embed_ids, generate
from pictish.lm.config import TrainConfig
from pictish.lm.grammar import one_image
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.packing import pack
from pictish.lm.pretrained import read_pretrained
from pictish.lm.sampling import Sampling
from pictish.lm.sequence import Features, join
from pictish.lm.train import train
from pictish.lm.vocabulary import text_ids
from tests.lm.pictures import CODES, COLOURS, FINGERPRINT, THINGS, caption, encoded, pair_shard, picture
from tests.lm.tiny import tiny_model, tiny_tokenizer

IMAGE_TOKENS = ImageTokens(FINGERPRINT, CODES, 16, 12)


@pytest.fixture
def shards(tmp_path) -> Path:
    for number in range(2):
        pair_shard(tmp_path / "shards" / f"{number}.tar", 40, seed=number)
    pair_shard(tmp_path / "validation" / "0.tar", 16, seed=9)
    return tmp_path


def config_for(shards: Path, *overrides: str) -> TrainConfig:
    paths = [
        f"data.train.pictures.paths=[{shards}/shards/*.tar]",
        "data.validation.unseen={paths: [%s/validation/*.tar], caption: 0.5}" % shards,  # noqa: UP031
    ]
    return parse(TrainConfig, load("tiny/lm", [*paths, *overrides]), "tiny/lm")


def lines(run: Path) -> list[dict[str, float]]:
    timed = ("waiting", "tokens_per_second")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


class Killed(Exception):
    pass


def killed_at(steps: set[int]):
    def progress(done: int, total: int) -> None:
        if done in steps:
            steps.remove(done)
            raise Killed

    return progress


def test_killed_runs_end_as_an_undisturbed_one(shards):
    config = config_for(shards)
    train(config, shards / "whole", IMAGE_TOKENS, "cpu")
    stops = {2, 3, 5, 7, 9}
    progress = killed_at(set(stops))
    for _ in stops:
        with pytest.raises(Killed):
            train(config, shards / "broken", IMAGE_TOKENS, "cpu", progress=progress)
    train(config, shards / "broken", IMAGE_TOKENS, "cpu", progress=progress)
    whole, broken = (load_file(shards / run / "model" / "model.safetensors") for run in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert lines(shards / "whole") == lines(shards / "broken")


def test_reading_ahead_changes_nothing(shards):
    train(config_for(shards), shards / "ahead", IMAGE_TOKENS, "cpu")
    train(config_for(shards, "data.read_ahead=false"), shards / "plain", IMAGE_TOKENS, "cpu")
    assert lines(shards / "ahead") == lines(shards / "plain")


def test_accumulated_forwards_give_the_same_curve(shards):
    train(config_for(shards), shards / "one", IMAGE_TOKENS, "cpu")
    train(config_for(shards, "data.gradient_accumulation_steps=4"), shards / "four", IMAGE_TOKENS, "cpu")
    one, four = ([row["loss"] for row in lines(shards / run) if "loss" in row] for run in ("one", "four"))
    assert one == pytest.approx(four, abs=1e-4)


def test_checkpointed_activations_are_computed_twice_and_give_the_same_curve(shards, monkeypatch):
    forward, calls = LlamaMLP.forward, []

    def counting(self, hidden):
        calls.append(torch.is_grad_enabled())
        return forward(self, hidden)

    monkeypatch.setattr(LlamaMLP, "forward", counting)
    stage = "stages=[{name: only, steps: 4, warmup: 2}]"
    counts = []
    for run, change in (("kept", "checkpointing=false"), ("twice", "checkpointing=true")):
        calls.clear()
        train(config_for(shards, stage, change), shards / run, IMAGE_TOKENS, "cpu")
        counts.append(sum(calls))  # validation and checks are without gradients
    steps, layers = 4, 2
    assert counts == [steps * layers, 2 * steps * layers]
    kept, twice = ([row["loss"] for row in lines(shards / run) if "loss" in row] for run in ("kept", "twice"))
    assert kept == pytest.approx(twice, abs=1e-5)


def test_bf16_learns_nearly_the_same_also_after_another_precision_in_one_process(shards):
    train(config_for(shards), shards / "full", IMAGE_TOKENS, "cpu")
    train(config_for(shards, "mixed_precision=bf16"), shards / "half", IMAGE_TOKENS, "cpu")
    full, half = ([row["loss"] for row in lines(shards / run) if "loss" in row] for run in ("full", "half"))
    assert full != half
    assert full == pytest.approx(half, abs=0.05)


def pretrained(shards: Path, *, lora: int | None = None, trainable: str = "'*'") -> TrainConfig:
    """A config whose base is a plain Hugging Face folder."""
    tokenizer = tiny_tokenizer()
    tiny_model("qwen3", len(tokenizer), dtype=torch.float32).save_pretrained(shards / "base")
    tokenizer.save_pretrained(shards / "base")
    stage = f"stages=[{{name: only, steps: 4, warmup: 0, trainable: [{trainable}]}}]"
    raw = load("tiny/lm", [f"data.train.pictures.paths=[{shards}/shards/*.tar]", stage])
    raw["model"] = {"base": {"kind": "pretrained", "folder": str(shards / "base"), "lora": lora}}
    return parse(TrainConfig, raw, "test")


def test_adapters_train_in_place_of_a_base_and_become_part_of_it(shards):
    config = pretrained(shards, lora=4, trainable="'*lora_*', new rows")
    folder = train(config, shards / "run", IMAGE_TOKENS, "cpu")
    trained, _ = read_pretrained(folder, torch.float32)
    base, _ = read_pretrained(shards / "base", torch.float32)
    before, after = base.state_dict(), trained.state_dict()
    assert before.keys() == after.keys(), "no trace of the adapters"
    projection, norm = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
    assert not torch.equal(before[projection], after[projection])
    assert torch.equal(before[norm], after[norm])
    rows = len(before["model.embed_tokens.weight"])
    assert torch.equal(after["model.embed_tokens.weight"][:rows], before["model.embed_tokens.weight"])


def test_adapters_train_with_all_that_the_small_preset_has(shards):
    small = parse(TrainConfig, load("small/lm"), "small/lm")
    names = ("objective", "hidden_dropout", "ema", "weight_decay", "optimizer")
    settings = {name: getattr(small, name) for name in names}
    assert settings["objective"].alignment > 0
    assert settings["hidden_dropout"] > 0
    config = pretrained(shards, lora=2).model_copy(update=settings)
    folder = train(config, shards / "run", IMAGE_TOKENS, "cpu", code_vectors=torch.randn(CODES, 8))
    before, after = (read_pretrained(each, torch.float32)[0] for each in (shards / "base", folder))
    assert before.state_dict().keys() == after.state_dict().keys(), "no trace of adapters and heads"
    projection = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before.state_dict()[projection], after.state_dict()[projection])
    assert torch.equal(before.model.norm.weight, after.model.norm.weight)


def test_a_stage_changes_what_it_names(shards):
    config = config_for(
        shards, "stages=[{name: only, steps: 3, learning_rate: 0.01, warmup: 0, trainable: [new rows]}]"
    )
    seen: list[dict[str, torch.Tensor]] = []

    def show(model: UnifiedModel, step: int) -> None:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    config = config.model_copy(update={"sample_every": 1})
    train(config, shards / "run", IMAGE_TOKENS, "cpu", show=show)
    first = UnifiedModel.from_folder(shards / "run" / "model").vocabulary.begin
    before, after = seen[0], seen[-1]
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert set(changed) == {"language.model.embed_tokens.weight", "language.lm_head.weight"}, (
        "tied: one matrix"
    )
    for name in changed:
        assert torch.equal(before[name][:first], after[name][:first])
        assert not torch.equal(before[name][first:], after[name][first:])


def test_a_stage_leaves_no_optimizer_for_the_next_one_to_scale(shards, monkeypatch):
    unscale, optimizers = Accelerator.unscale_gradients, []

    def counting(self, optimizer=None):
        optimizers.append(len(self._optimizers))
        return unscale(self, optimizer)

    monkeypatch.setattr(Accelerator, "unscale_gradients", counting)
    train(config_for(shards), shards / "run", IMAGE_TOKENS, "cpu")
    assert optimizers == [1] * 10


def test_samples_that_cannot_be_drawn_stop_a_run_before_its_first_step_only(shards, caplog):
    def show(model: UnifiedModel, step: int) -> None:
        if step >= broken:
            raise ValueError("a prompt of 300 tokens")

    config, broken = config_for(shards).model_copy(update={"sample_every": 4}), 0
    with pytest.raises(ValueError, match="a prompt of 300 tokens"):
        train(config, shards / "first", IMAGE_TOKENS, "cpu", show=show)
    assert not (shards / "first" / "metrics.jsonl").exists()
    broken = 8
    train(config, shards / "later", IMAGE_TOKENS, "cpu", show=show)
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "no samples of step 8: a prompt of 300 tokens"
    ]
    train(config_for(shards), shards / "none", IMAGE_TOKENS, "cpu")
    assert lines(shards / "later") == lines(shards / "none")


def test_each_source_of_validation_has_a_loss_of_its_own(shards):
    pair_shard(shards / "other" / "0.tar", 30, seed=3)
    other = f"data.validation.more={{paths: [{shards}/other/*.tar], caption: 1}}"
    train(config_for(shards, other), shards / "run", IMAGE_TOKENS, "cpu")
    last = lines(shards / "run")[-1]
    each = [last["validation_unseen_loss"], last["validation_more_loss"]]
    assert min(each) < last["validation_loss"] < max(each)


def test_a_pattern_that_matches_nothing_is_refused(shards):
    config = config_for(shards, "stages=[{name: only, steps: 3, warmup: 0, trainable: ['layers.9.*']}]")
    with pytest.raises(ValueError, match=r"layers\.9"):
        train(config, shards / "run", IMAGE_TOKENS, "cpu")


def test_it_learns_and_the_folder_is_a_plain_one(shards):
    config = config_for(
        shards,
        "stages=[{name: only, steps: 60, learning_rate: 0.01, warmup: 5}]",
        "log_every=10",
        "validate_every=60",
    )
    folder = train(config, shards / "run", IMAGE_TOKENS, "cpu")
    losses = [row["loss"] for row in lines(shards / "run") if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert {"loss_caption", "loss_drawing", "padding"} <= lines(shards / "run")[0].keys()
    assert lines(shards / "run")[-1]["validation_loss"] < 0.5 * losses[0]
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ours = UnifiedModel.from_folder(folder)
    ids = tokenizer("a red apple[IMG]<code-00000><code-00003>[/IMG]", return_tensors="pt").input_ids
    vocabulary = ours.vocabulary
    assert ids[0, -4:].tolist() == [
        vocabulary.begin,
        *vocabulary.ids_of(torch.tensor([0, 3])),
        vocabulary.end,
    ]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, ours.language(ids).logits)
        scores = plain(ids).logits[0, -5]  # behind the text
    assert scores.argmax() == vocabulary.begin


def test_a_placed_model_learns_where_codes_lie(shards):
    """Codes on cells 1, 2, 6, 11 and perhaps 15, as the training data has them."""
    stage = "stages=[{name: only, steps: 80, learning_rate: 0.01, warmup: 5}]"
    placed = replace(IMAGE_TOKENS, cells=16)
    config = config_for(shards, stage, "log_every=20", "checkpoint_every=80", "validate_every=80")
    folder = train(config, shards / "run", placed, "cpu")
    model = UnifiedModel.from_folder(folder)
    assert (model.image_tokens, model.vocabulary.cells) == (placed, 16)
    ids = [*text_ids(model.text_tokenizer, "a red apple"), model.vocabulary.begin]
    prompt = Prompt(embed_ids(model.language, ids), inside=True)
    request, greedy = one_image(16, cells=16), Sampling(temperature=0)
    [[drawn]] = generate(model.language, model.vocabulary, [prompt], request, sampling=greedy)
    assert drawn.cells[:4] == (1, 2, 6, 11)
    assert drawn.cells[4:] in ((), (15,))
    with pytest.raises(ValueError, match="on 16 cells, came the image tokenizer 0123456789ab of 30 codes"):
        train(config, shards / "run", IMAGE_TOKENS, "cpu")


def test_any_causal_model_can_be_the_base(shards):
    folder = train(pretrained(shards), shards / "run", IMAGE_TOKENS, "cpu")
    trained, _ = read_pretrained(folder, torch.float32)
    assert trained.config.model_type == "qwen3"
    with pytest.raises(ValueError, match=r"no config\.json"):
        read_pretrained(shards, torch.float32)


def test_rows_longer_than_the_context_are_refused(shards):
    with pytest.raises(ValueError, match="context of 256"):
        train(config_for(shards, "data.length=300"), shards / "run", IMAGE_TOKENS, "cpu")


def test_codes_of_another_tokenizer_are_refused(shards):
    pair_shard(shards / "shards" / "0.tar", 40, fingerprint="ffffffffffff")
    pair_shard(shards / "shards" / "1.tar", 40, fingerprint="ffffffffffff")
    with pytest.raises(ValueError, match=r"ffffffffffff.*0123456789ab|0123456789ab.*ffffffffffff"):
        train(config_for(shards), shards / "run", IMAGE_TOKENS, "cpu")


def test_damage_is_named_at_the_end_or_stops_the_run(shards, caplog):
    with ShardFile(shards / "shards" / "2.tar") as shard:
        shard.write("bad", {"tokens": b"hello", "txt": b"a red car"})
        shard.write("none", {"json": b"{}"})
    train(config_for(shards), shards / "run", IMAGE_TOKENS, "cpu")
    said = " ".join(record.message for record in caplog.records)
    assert "2.tar/bad" in said
    assert "2.tar/none" in said
    with pytest.raises(ValueError, match=r"2\.tar/(bad|none)"):
        train(config_for(shards, "data.strict=true"), shards / "strict", IMAGE_TOKENS, "cpu")


def raw_shard(path: Path, count: int) -> None:
    """Made-up images, whose bytes are the caption that they show."""
    chance = np.random.default_rng(0)
    with ShardFile(path) as shard:
        for number in range(count):
            text = caption(chance).encode()
            shard.write(f"{number:04d}", {"png": text, "txt": text})


def encode_images(pictures) -> list[EncodedImage]:
    found = []
    for one in pictures:
        _, colour, thing = one.blob.decode().split()
        row = np.zeros((2, 12), np.float32)
        row[0, COLOURS.index(colour)] = row[1, 4 + THINGS.index(thing)] = 1
        found.append(encoded([COLOURS.index(colour), 6 + THINGS.index(thing)], None, row))
    return found


def test_the_projector_is_trained_kept_and_matters(shards):
    raw_shard(shards / "raw" / "0.tar", 40)
    source = "data.train={pictures: {paths: [%s/raw/*.tar], caption: 1, continuous: 1}}" % shards  # noqa: UP031
    stage = "stages=[{name: only, steps: 8, learning_rate: 0.01, warmup: 0}]"
    config = parse(
        TrainConfig, load("tiny/lm", [source, stage, "model.features=true", "sample_every=4"]), "test"
    )
    seen: list[dict[str, torch.Tensor]] = []

    def show(model: UnifiedModel, step: int) -> None:
        seen.append({name: tensor.clone() for name, tensor in model.projector.state_dict().items()})

    folder = train(config, shards / "run", IMAGE_TOKENS, "cpu", encode_images=encode_images, show=show)
    early, *_, late = seen  # one before the first step
    assert all(not torch.equal(early[name], late[name]) for name in early)
    model = UnifiedModel.from_folder(folder)
    assert all(torch.equal(late[name], tensor) for name, tensor in model.projector.state_dict().items())
    vocabulary = model.vocabulary
    shown = join(
        "caption", [Features(encode_images([ImageBytes(b"a red car", "")])[0].features)], vocabulary, list
    )
    other = join(
        "caption", [Features(encode_images([ImageBytes(b"a blue sun", "")])[0].features)], vocabulary, list
    )
    with torch.no_grad():
        first, second = (
            model(pack([[document]], len(document))).logits[0, -1] for document in (shown, other)
        )
    assert not torch.allclose(first, second, atol=1e-3)


def test_a_run_of_adapters_resumes_bit_for_bit(shards):
    config = pretrained(shards, lora=2).model_copy(update={"checkpoint_every": 2})
    train(config, shards / "whole", IMAGE_TOKENS, "cpu")
    with pytest.raises(Killed):
        train(config, shards / "broken", IMAGE_TOKENS, "cpu", progress=killed_at({3}))
    train(config, shards / "broken", IMAGE_TOKENS, "cpu")
    whole, broken = (load_file(shards / run / "model" / "model.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    base = load_file(shards / "base" / "model.safetensors")
    assert torch.equal(whole["model.norm.weight"], base["model.norm.weight"]), "`*` leaves the base alone"
    assert not torch.equal(
        whole["model.layers.0.mlp.up_proj.weight"], base["model.layers.0.mlp.up_proj.weight"]
    )


def test_adapters_beside_weights_of_the_base_are_refused(shards):
    config = pretrained(shards, lora=2, trainable="'*lora_*', '*norm*'")
    with pytest.raises(ValueError, match=r"'\*norm\*' matches .*lora's adapters stand in for"):
        train(config, shards / "run", IMAGE_TOKENS, "cpu")


def test_each_stage_trains_its_weights_on_its_sources(shards):
    pair_shard(shards / "more" / "0.tar", 40, seed=3)
    stages = (
        "stages=[{name: one, steps: 3, warmup: 0, trainable: ['*layers.0.*'], weights: {more: 0}},"
        "{name: two, steps: 3, warmup: 0, trainable: ['*layers.1.*'], weights: {pictures: 0}}]"
    )
    more = f"data.train.more.paths=[{shards}/more/*.tar]"
    config = config_for(shards, stages, more, "sample_every=1")
    seen: list[dict[str, torch.Tensor]] = []
    drawn: list[list[str]] = []
    plain = trainer.sources_of

    def show(model: UnifiedModel, step: int) -> None:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    def noting(sources, weights):
        found = plain(sources, weights)
        drawn.append([source.name for source in found])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "sources_of", noting)
        train(config, shards / "run", IMAGE_TOKENS, "cpu", show=show)
    captions = ["more", "pictures"]  # which are collected of all sources, at the end
    assert [sorted(names) for names in drawn[-3:]] == [["pictures"], ["more"], captions]
    for (before, after), layer in (((seen[0], seen[3]), "layers.0."), ((seen[3], seen[6]), "layers.1.")):
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert changed
        assert all(layer in name for name in changed)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_embeddings_and_norms_do_not_decay(shards, monkeypatch, optimizer):
    made = []
    for name in ("adamw", "muon"):
        plain = getattr(trainer, name)

        def noting(*given, plain=plain, **settings):
            made.append(plain(*given, **settings))
            return made[-1]

        monkeypatch.setattr(trainer, name, noting)
    config = config_for(shards, f"optimizer={optimizer}", "weight_decay=0.3", "model.features=true")
    train(config, shards / "run", IMAGE_TOKENS, "cpu")
    decays = {name: group["weight_decay"] for group in made[0].param_groups for name in group["param_names"]}
    assert decays["language.model.embed_tokens.weight"] == 0
    assert decays["language.model.layers.0.input_layernorm.weight"] == 0
    assert decays["projector.body.1.bias"] == 0
    assert decays["language.model.layers.0.mlp.up_proj.weight"] == 0.3
    assert decays["projector.body.1.weight"] == 0.3
    matrices = [n for group in made[0].param_groups if "momentum" in group for n in group["param_names"]]
    assert len(matrices) == (2 * 7 if optimizer == "muon" else 0), "of two layers, the projector's not"


def test_attention_may_be_eager_and_that_is_not_saved(shards):
    folders = [
        train(config_for(shards, f"model.attn_implementation={kind}"), shards / kind, IMAGE_TOKENS, "cpu")
        for kind in ("eager", "sdpa")
    ]
    eager, sdpa = ([row["loss"] for row in lines(f.parent) if "loss" in row] for f in folders)
    assert eager == pytest.approx(sdpa, abs=1e-4)
    texts = [(folder / "config.json").read_text() for folder in folders]
    assert texts[0] == texts[1]


def test_soft_targets_and_heads_without_code_vectors_are_a_bug(shards):
    for setting in ("alignment: 1", "neighbors: {count: 3}"):
        objective = "objective={kind: autoregressive, %s}" % setting  # noqa: UP031
        with pytest.raises(AssertionError, match="code vectors"):
            train(config_for(shards, objective), shards / "run", IMAGE_TOKENS, "cpu")


def test_one_picture_at_several_budgets_is_one_source_of_several_folders(shards):
    chance = np.random.default_rng(0)
    for budget in (2, 4):  # of the same images, in shards of the same name
        with ShardFile(shards / f"budget-{budget}" / "0.tar") as shard:
            for number in range(40):
                text = caption(np.random.default_rng(number))
                whole = picture(text, chance)
                tokens = TokenizedImage(
                    whole.ids[:budget], whole.cells[:budget], (4, 4), (64, 64), FINGERPRINT, CODES
                )
                shard.write(f"{number:04d}", {"tokens": tokens.to_bytes(), "txt": text.encode()})
    source = "data.train={pictures: {paths: [%s/budget-*/*.tar], caption: 0}}" % shards  # noqa: UP031
    config = parse(TrainConfig, load("tiny/lm", [source]), "test")
    mixture = Mixture(documents.sources_of(config.data.train, {}), seed=0)
    assert mixture.sizes == {"pictures": 80}
    drawn = [(one.sample.key, len(one.sample.picture)) for one in islice(mixture, 80)]
    assert len(set(drawn)) == 80, "each picture at each budget once an epoch"
    lengths = [length for _, length in drawn]
    assert lengths != sorted(lengths), "mixed"
    assert set(lengths) == {2, 4}
    train(config, shards / "run", IMAGE_TOKENS, "cpu")
