"""What may change when a run resumes, and how the rest is named."""

from pathlib import Path

import pytest

from pictish.training.resume import check_inputs, differences, in_one_line


def test_settings_that_decide_nothing_may_differ():
    before = {"log_every": 1, "data": {"workers": 2, "train": ["a.tar"], "views": 2}, "checkpointing": False}
    now = {
        "log_every": 5,
        "data": {"workers": 0, "train": ["b.tar", "c.tar"], "views": 2},
        "checkpointing": True,
    }
    assert differences(before, now) == []
    weights = {"model": {"encoder": {"weights": {"kind": "file", "path": "a"}}}}
    moved = {"model": {"encoder": {"weights": {"kind": "file", "path": "b"}}}}
    assert differences(weights, moved) == []
    assert differences({"data": {"validation": {}}}, {"data": {"validation": {"a": {"paths": ["b"]}}}}) == []


def test_the_others_are_named_with_both_values():
    before = {
        "stages": [{"name": "a", "steps": 4}],
        "data": {"train": {"x": {"weight": 1.0}}},
        "samples": ["a"],
    }
    now = {"stages": [{"name": "a", "steps": 8}], "data": {"train": {"y": {"weight": 1.0}}}}
    assert differences(before, now) == [
        "stages[0].steps was 4, 8 now",
        "data.train.x.weight was 1.0, not set now",
        "data.train.y.weight was not set, 1.0 now",
    ]
    assert differences({"model": {"kind": "a"}}, {"model": {"kind": "a", "settings": {}}}) == [
        "model.settings was not set, {} now"
    ]
    assert in_one_line([str(number) for number in range(7)]) == "0; 1; 2; 3; 4; and 2 more"


def test_inputs_may_move_and_not_change():
    check_inputs(Path("run"), {"tokenizer": "a"}, {"tokenizer": "a", "data.train": "b"})
    check_inputs(Path("run"), {}, {"tokenizer": "a"})
    with pytest.raises(
        ValueError, match="run: was trained with another tokenizer: its fingerprint was a, it is b"
    ):
        check_inputs(Path("run"), {"tokenizer": "a"}, {"tokenizer": "b"})
