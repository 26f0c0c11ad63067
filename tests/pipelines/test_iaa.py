"""Importing IAA under its official names, and asking what was imported."""

import pytest
import torch
from PIL import Image

from pictish.cli import main
from pictish.lm.boxes import Box, draw_boxes, on_picture, overlap, parse_boxes
from pictish.pipelines.dialogue import Dialogue
from pictish.pipelines.import_iaa import import_iaa
from pictish.pipelines.importing import Refused
from tests.iaa import Silent, write_checkpoint

PICTURE = Image.new("RGB", (40, 20), "red")


def test_an_import_answers_by_each_adaptor_and_text_as_if_alone(tmp_path):
    source = write_checkpoint(tmp_path / "source", files=3)
    out = tmp_path / "out"
    made = import_iaa(source, out, progress=Silent(), system="Be short.")
    assert list(made) == ["lm", "adaptors/general", "adaptors/grounding", "vision_tower"]
    talk = Dialogue.from_folder(out, "cpu")
    assert sorted(talk.paths) == ["general", "grounding"]
    rows = [
        (PICTURE, "where is it?", "grounding"),
        (None, "hello", None),
        (PICTURE, None, None),
        (Image.new("RGB", (8, 30), "blue"), "where is it?", "grounding"),
    ]

    def said(chosen):
        images, questions, adaptors = zip(*chosen, strict=True)
        return talk.ask(images, questions, adaptors=adaptors, max_new_tokens=6)

    together = said(rows)
    assert together == [said([row])[0] for row in rows]
    assert len(set(together)) >= 3, "each path says something else"
    plain = talk.base.language(torch.arange(5)[None]).logits
    talk.unload_adaptor("general")
    assert torch.equal(plain, talk.base.language(torch.arange(5)[None]).logits)
    with pytest.raises(ValueError, match="no adaptor is called general; there are grounding"):
        said(rows)

    picture, boxes = tmp_path / "picture.png", tmp_path / "boxes.png"
    PICTURE.save(picture)
    arguments = ["describe", str(picture), "where?", "--model", str(out), "--adaptor", "grounding"]
    assert main([*arguments, "--max-new-tokens", "3", "--draw-boxes", str(boxes)]) == 0
    assert Image.open(boxes).size == PICTURE.size


def test_base_and_tower_can_be_quantized(tmp_path):
    pytest.importorskip("torchao")
    out = tmp_path / "out"
    import_iaa(write_checkpoint(tmp_path / "source"), out, progress=Silent())
    small = Dialogue.from_folder(out, "cpu", quantize="int8")
    assert len(small.ask([PICTURE, None], ["what?", "hello"], max_new_tokens=2)) == 2


def test_every_fault_of_a_checkpoint_is_told_before_anything_is_written(tmp_path):
    missing, strange = "lm_head_condtion_grounding.weight", "lm_head_condition.weight"
    source = write_checkpoint(tmp_path / "source", without=missing, extra=strange)
    (source / "tokenizer.json").unlink()
    with pytest.raises(Refused) as refused:
        import_iaa(source, tmp_path / "out", progress=Silent())
    faults = "\n".join(refused.value.faults)
    assert f"1 missing: {missing}" in faults
    assert f"1 unexpected: {strange}" in faults
    assert "tokenizer.json: missing" in faults
    assert not (tmp_path / "out").exists()


def test_insertion_points_that_no_file_tells_must_be_given(tmp_path):
    source = write_checkpoint(tmp_path / "source")
    with pytest.raises(Refused, match=r"no file says where they are|faults"):
        import_iaa(source, tmp_path / "out", progress=Silent(), points=(0, 1, 2))
    import_iaa(source, tmp_path / "out", progress=Silent(), points=(1, 2))
    assert Dialogue.from_folder(tmp_path / "out", "cpu").ask([PICTURE], ["what?"], max_new_tokens=2)


def test_boxes_are_read_as_numbers_and_nothing_is_evaluated():
    answer = "[0.1, 0.25,0.5, 1]; [0, 0, .5, .5]; [0.9, 0, 0.1, 1]; [2, 0, 3, 1]; [__import__('os'), 0, 1, 1]"
    found = parse_boxes(answer)
    assert found.boxes == [Box(0.1, 0.25, 0.5, 1.0), Box(0.0, 0.0, 0.5, 0.5)]
    assert found.wrong == 2
    assert parse_boxes("[" * 100_000 + "1" * 100_000).boxes == []
    assert overlap(Box(0, 0, 2, 2), Box(1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap(Box(0, 0, 0, 0), Box(0, 0, 0, 0)) == 0


def test_boxes_of_the_padded_square_are_drawn_on_the_picture():
    # 40 x 20 lies in the middle of 40 x 40: rows 10 to 30
    assert on_picture(Box(0.25, 0.25, 0.75, 0.5), 40, 20) == Box(10, 0, 30, 10)
    drawn = draw_boxes(Image.new("RGB", (40, 20), "white"), [Box(0.25, 0.25, 0.75, 0.5)])
    assert drawn.getpixel((10, 5)) == (255, 0, 0)
    assert drawn.getpixel((20, 5)) == (255, 255, 255)
