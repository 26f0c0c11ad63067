"""Heads that find code vectors: where they are asked, what they cost, and that they only train."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pictish.lm.alignment import Alignment
from pictish.lm.config import Autoregressive
from pictish.lm.model import UnifiedModel
from pictish.lm.objective import autoregressive, shifted
from pictish.lm.packing import IGNORED, Packed, pack
from pictish.lm.pretrained import width_of
from pictish.lm.sequence import Codes, build, drawing, edit
from tests.lm.tiny import tiny_unified

VECTORS = torch.randn(30, 6, generator=torch.Generator().manual_seed(4))


def aligned(architecture: str) -> UnifiedModel:
    model = tiny_unified(architecture)
    torch.manual_seed(2)
    model.alignment = Alignment(width_of(model.language), 2, VECTORS, model.vocabulary)
    return model


def rows(model: UnifiedModel) -> Packed:
    codes = torch.randint(30, (3, 6), generator=torch.Generator().manual_seed(5)).numpy()
    parts = [drawing("ab", Codes(codes[0]), None), edit(Codes(codes[1]), "c", Codes(codes[2]))]
    documents = [
        build(task, part, model.vocabulary, lambda text: [4, 5], eos=2)
        for task, part in zip(("drawing", "edit"), parts, strict=True)
    ]
    return pack([documents], 64)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_errors_are_cosines_at_codes_that_are_learned(architecture):
    model = aligned(architecture).train()
    packed = shifted(rows(model))
    vocabulary, heads = model.vocabulary, model.alignment
    with torch.no_grad():
        found = model(packed).alignment
        states = model.language(
            inputs_embeds=model.embed(packed.ids[:, :14]), use_cache=False, output_hidden_states=True
        ).hidden_states
        expected, count = 0.0, 0
        for place in range(1, 14):  # of the first document
            target = packed.targets[0, place - 1]
            if target != IGNORED and vocabulary.is_code(target):
                vector = VECTORS[vocabulary.codes_of(target)]
                for given in (
                    heads.current(states[0][0, place]),
                    heads.following(states[heads.depth][0, place - 1]),
                ):
                    expected += 1 - float(F.cosine_similarity(given, vector, dim=0))
                    count += 1
        assert count == 12
        alone = replace(packed, targets=packed.targets.masked_fill(packed.documents != 1, IGNORED))
        assert model(alone).alignment.tolist() == pytest.approx([expected, count], rel=1e-4)
    assert found[1] == 24, "not the source of the edit"


def test_a_code_that_is_read_wrong_is_not_asked_for_but_the_next_one_is():
    model = aligned("llama").train()
    packed = rows(model)
    objective = autoregressive(Autoregressive(corrupt=1, alignment=1), model.vocabulary)
    seen = objective.prepare(packed, torch.Generator().manual_seed(0), 0.0)
    wrong = int((seen.ids != packed.ids).sum())
    assert 0 < wrong < 12
    assert int(model(seen).alignment[1]) == 24 - wrong


def test_the_weighted_errors_are_part_of_the_loss_and_train_states_and_heads():
    model = aligned("llama").train()
    packed = shifted(rows(model))
    output = model(packed)
    plain = autoregressive(Autoregressive(), model.vocabulary).losses(output, packed)
    weighed = autoregressive(Autoregressive(alignment=0.5), model.vocabulary).losses(output, packed)
    assert (weighed.total - plain.total).item() == pytest.approx(0.5 * output.alignment[0].item(), rel=1e-4)
    assert torch.equal(weighed.by_task, plain.by_task), "the log tells cross entropies"
    output.alignment[0].backward()
    layers = model.language.model.layers
    assert layers[0].mlp.up_proj.weight.grad.any()
    assert layers[1].mlp.up_proj.weight.grad is None, "above the second head"
    assert all(parameter.grad.any() for parameter in model.alignment.parameters())


def test_rows_without_codes_give_heads_a_gradient_of_zero():
    model = aligned("llama").train()
    packed = shifted(rows(model))
    packed = replace(packed, targets=torch.full_like(packed.targets, IGNORED))
    output = model(packed)
    assert output.alignment.tolist() == [0, 0]
    (output.logits.sum() * 0 + output.alignment[0]).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.alignment.parameters())


def test_heads_are_left_out_of_evaluation_and_of_the_model_folder(tmp_path):
    model = aligned("llama").eval()
    packed = shifted(rows(model))
    with torch.no_grad():
        assert model(packed).alignment is None
    model.save(tmp_path / "model", dtype=torch.float32)
    loaded = UnifiedModel.from_folder(tmp_path / "model")
    assert loaded.alignment is None
    assert loaded.state_dict().keys() == {n for n in model.state_dict() if not n.startswith("alignment.")}
