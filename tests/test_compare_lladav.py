"""Numbers recorded from LLaDA, LLaDA-V and Fast-dLLM, where the fixture lies beside the checkout."""

import pytest
import torch

from tests.tree import ROOT
from tools.compare_lladav import Case, Differs, compare, network, schedules

FIXTURE = ROOT.parent / "shared" / "fixtures" / "lladav_tiny"
SPECIAL = {"eos": 1, "eot": 2, "mask": 9, "bos": 0, "start_header": 3, "end_header": 4}


@pytest.mark.slow
@pytest.mark.skipif(not FIXTURE.is_dir(), reason="the recorded fixture is not here")
def test_our_samplers_losses_and_caches_give_the_recorded_ids_and_numbers():
    rows = [row for row in compare(FIXTURE) if not row.name.startswith(("lladav_layout", "lladav_rename"))]
    assert len(rows) > 90
    assert [row for row in rows if not row.right] == []
    assert sum("official quirks" in row.note for row in rows) == 3, "all else is so without"


def test_a_folder_without_a_recording_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no recording"):
        list(compare(tmp_path))


def test_a_case_says_what_the_official_code_did_by_accident():
    assert Case("llada/x", {"vocab": 10, "masks_left": 0}, {}, SPECIAL).accidents == ""
    accidental = Case(
        "llada/x", {"vocab": 10, "masks_left": 2, "tie_order_decides_tokens": True}, {}, SPECIAL
    )
    assert accidental.accidents == "masks_left, tie_order_decides_tokens"
    with pytest.raises(Differs, match="has no prompt"):
        accidental["prompt"]


def test_ids_are_those_that_have_logits():
    case = Case(
        "llada/x",
        {},
        {"llada/x/active_ids": torch.tensor([5, 9, 70]), "llada/x/a": torch.tensor([[70, 5, 3]])},
        SPECIAL,
    )
    assert case.ids("a").tolist() == [[2, 0, -1]]


def test_a_wrong_schedule_is_told():
    table = torch.tensor([[5, 2, 3, 2, -1]])
    assert [row.right for row in schedules({"a/num_transfer_tokens": table})] == [True]
    assert [
        row.right
        for row in schedules({"a/num_transfer_tokens": table.roll(0) + torch.tensor([0, 0, -1, 1, 0])})
    ] == [False]


def test_the_number_of_heads_is_found_by_what_they_compute():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=12,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            initializer_range=0.5,
            tie_word_embeddings=False,
        )
        model = LlamaForCausalLM(config).eval()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        wanted = model(ids).logits
    found = network(model.state_dict(), lambda other: float((other(ids).logits - wanted).abs().max()))
    assert found.config.num_attention_heads == 4
