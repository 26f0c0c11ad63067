"""The ComfyUI nodes of integrations/comfyui in a stub of its node interface, on a tiny model."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

import pictish
from tests.integrations.comfy_stub import Comfy, Interrupted, Refused
from tests.tree import ROOT

KINDS = {"INT", "FLOAT", "STRING", "BOOLEAN", "IMAGE", "PICTISH_PIPELINE", "PICTISH_TOKENS"}
PIPE = ["load", 0]


class Given:
    """Nodes of the test: values of any kind."""

    values: tuple = ()
    RETURN_TYPES = ("IMAGE", "INT", "FLOAT", "STRING")
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"number": ("INT", {"default": 0})}}

    def give(self, number):
        return self.values[number]


@pytest.fixture
def comfy(whole_model, tmp_path, monkeypatch) -> Comfy:
    (tmp_path / "pictish").mkdir()
    (tmp_path / "pictish" / "tiny").symlink_to(whole_model)
    (tmp_path / "pictish" / "no model").mkdir()
    found = Comfy(ROOT / "integrations" / "comfyui", tmp_path, monkeypatch)
    found.nodes["Given"] = Given
    return found


@pytest.fixture(scope="module")
def pipe(whole_model):
    return pictish.Pipeline.from_pretrained(whole_model, device="cpu")


def given(monkeypatch, *values) -> dict:
    """A node whose outputs are a batch of images, an INT, a FLOAT and a STRING."""
    monkeypatch.setattr(Given, "values", [values])
    return {"class_type": "Given", "inputs": {"number": 0}}


def workflow(kind: str, given: dict | None = None, **inputs) -> dict:
    """Load the tiny model, and a node `it` behind it."""
    load = {"class_type": "PictishLoad", "inputs": {"model": "tiny", "device": "cpu", "dtype": "float32"}}
    it = {"class_type": kind, "inputs": {"pipeline": PIPE, **inputs}}
    return {"load": load, "it": it} | ({} if given is None else {"given": given})


def photos(*colours: str) -> list[Image.Image]:
    images = [Image.new("RGB", (40, 30), colour) for colour in colours]
    for image in images:
        image.paste("blue", (0, 0, 20, 15))
    return images


def batch(images) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(image, np.float32) / 255) for image in images])


def assert_equal(found: torch.Tensor, images: list[Image.Image]) -> None:
    """A batch as ComfyUI has it, with the very pixels of `images`."""
    assert found.dtype == torch.float32
    assert found.shape == (len(images), images[0].height, images[0].width, 3)
    assert torch.equal(found, batch(images))


def test_every_node_says_what_it_takes_and_gives(comfy):
    assert comfy.module.NODE_DISPLAY_NAME_MAPPINGS.keys() == comfy.nodes.keys() - {"Given"}
    for name, node in comfy.nodes.items():
        if node is Given:
            continue
        parts = node.INPUT_TYPES()
        assert parts.keys() <= {"required", "optional"}, name
        for one, (kind, options) in (parts["required"] | parts.get("optional", {})).items():
            assert isinstance(kind, list) or kind in KINDS, (name, one)
            default = options.get("default")
            if isinstance(kind, list):
                assert default in kind, (name, one)
            elif kind in ("INT", "FLOAT", "STRING", "BOOLEAN") and not options.get("forceInput"):
                assert default is not None, (name, one)
                assert options.get("min", default) <= default <= options.get("max", default), (name, one)
        assert set(node.RETURN_TYPES) <= KINDS, name
        assert len(node.RETURN_NAMES) == len(node.RETURN_TYPES), name
        assert node.CATEGORY == "pictish", name
        taken = inspect.signature(getattr(node, node.FUNCTION)).parameters
        required = [
            one for one, said in taken.items() if said.default is said.empty and said.kind != said.VAR_KEYWORD
        ]
        assert required == ["self", *parts["required"]], name
        for one in parts.get("optional", {}):
            assert one in taken or any(said.kind == said.VAR_KEYWORD for said in taken.values()), (name, one)


def test_draw_gives_the_images_of_the_pipeline(comfy, pipe, monkeypatch):
    inputs = {"prompt": "a red apple", "seed": 5, "num_images": 2}
    ((images,),) = comfy.run(workflow("PictishDraw", **inputs), "it")
    assert_equal(images, pipe.generate("a red apple", num_images=2, seed=5))
    assert comfy.steps
    assert all(0 < step <= steps for step, steps in comfy.steps)
    settings = {"width": ["given", 1], "height": ["given", 1], "guidance_scale": ["given", 2]}
    settings["num_inference_steps"] = ["wide", 1]
    graph = workflow("PictishDraw", given(monkeypatch, None, 48, 2.5, ""), **inputs, **settings)
    graph["wide"] = {"class_type": "Given", "inputs": {"number": 1}}
    Given.values.append((None, 0, 0.0, ""))
    ((images,),) = comfy.run(graph, "it")
    expected = pipe.generate(
        "a red apple", num_images=2, seed=5, size=48, guidance_scale=2.5, num_inference_steps=0
    )
    assert_equal(images, expected)


def test_edit_takes_each_image_of_a_batch(comfy, pipe, monkeypatch):
    source = photos("red", "green")
    inputs = {"images": ["given", 0], "instruction": "make it white", "seed": 3, "keep_unchanged": False}
    ((images,),) = comfy.run(
        workflow("PictishEdit", given(monkeypatch, batch(source), 0, 0.0, ""), **inputs), "it"
    )
    expected = [
        pipe.edit(image, "make it white", seed=3 + n, keep_unchanged=False) for n, image in enumerate(source)
    ]
    assert_equal(images, expected)


def test_describe_gives_a_text_for_each_image(comfy, pipe, monkeypatch):
    source = photos("red", "green")
    node = given(monkeypatch, batch(source), 6, 0.0, "")
    inputs = {"images": ["given", 0], "max_new_tokens": ["given", 1]}
    for question in ("what is it?", " "):
        (texts,) = comfy.run(workflow("PictishDescribe", node, question=question, **inputs), "it")
        assert texts == pipe.describe(source, question.strip() or None, max_new_tokens=6)


def test_texts_of_a_batch_are_drawn_one_after_the_other(comfy, monkeypatch):
    graph = workflow(
        "PictishDescribe",
        given(monkeypatch, batch(photos("red", "green")), 6, 0.0, ""),
        images=["given", 0],
        question="",
    )
    inputs = {"pipeline": PIPE, "prompt": ["it", 0], "seed": 0, "num_images": 1}
    graph["again"] = {"class_type": "PictishDraw", "inputs": inputs}
    (drawn,) = comfy.run(graph, "again")
    assert [len(images) for images in drawn] == [1, 1]


def test_tokens_there_and_back(comfy, pipe, monkeypatch):
    source = photos("red", "green")
    stretched = batch(source) * 1.5 - 0.25  # as resampling leaves it: outside of [0, 1]
    expected = batch(source).mul(1.5).sub(0.25).clamp(0, 1).numpy()
    graph = workflow(
        "PictishTokenize", given(monkeypatch, stretched, 5, 0.0, ""), images=["given", 0], budget=["given", 1]
    )
    graph["back"] = {
        "class_type": "PictishDetokenize",
        "inputs": {"pipeline": PIPE, "tokens": ["it", 0], "seed": 2},
    }
    ((tokens,),) = comfy.run(graph, "it")
    assert tokens == pipe.tokenize(list(expected), budget=5)
    ((images,),) = comfy.run(graph, "back")
    assert_equal(images, pipe.detokenize(tokens, seed=2))


def test_models_are_chosen_from_a_list(comfy, tmp_path, monkeypatch):
    names, _ = comfy.nodes["PictishLoad"].INPUT_TYPES()["required"]["model"]
    assert names == ["starter", "tiny"]
    graph = workflow("PictishDraw", prompt="x", seed=0, num_images=1)
    for name in ("/etc", "../pictish/tiny", "user/repo", "no model"):
        graph["load"]["inputs"]["model"] = name
        with pytest.raises(Refused, match="value not in list"):
            comfy.run(graph, "it")
    graph["load"]["inputs"]["model"] = ["given", 3]  # a link, whose value ComfyUI does not see
    graph["given"] = given(monkeypatch, None, 0, 0.0, str(tmp_path))
    with pytest.raises(ValueError, match="is not installed; starter, tiny would fit"):
        comfy.run(graph, "it")


@pytest.mark.parametrize(
    ("kind", "inputs", "part"),
    [
        ("PictishDraw", {"prompt": " ", "seed": 0, "num_images": 1}, "prompt"),
        (
            "PictishDraw",
            {"prompt": "x", "seed": 0, "num_images": 1, "width": ["given", 1]},
            "both or neither",
        ),
        ("PictishDraw", {"prompt": "x", "seed": 0, "num_images": 1, "upscale": ["given", 1]}, "upscale"),
        ("PictishTokenize", {"images": ["given", 0], "threshold": ["given", 2]}, "threshold"),
    ],
)
def test_errors_are_one_line(comfy, monkeypatch, kind, inputs, part):
    node = given(monkeypatch, batch(photos("red")), 3, 7.5, "")
    with pytest.raises(ValueError, match=part) as caught:
        comfy.run(workflow(kind, node, **inputs), "it")
    assert "\n" not in str(caught.value)


def test_images_of_several_sizes_are_no_batch(comfy):
    images = [*photos("red"), Image.new("RGB", (10, 10))]
    with pytest.raises(ValueError, match="sizes 10x10, 40x30 in one batch"):
        comfy.module._batch(images)


def test_the_stop_button_ends_the_drawing(comfy):
    comfy.interrupt_at = 3
    with pytest.raises(Interrupted):
        comfy.run(workflow("PictishDraw", prompt="a red apple", seed=0, num_images=1), "it")
    assert len(comfy.steps) == 3
