"""A model folder with a masked language model does what any other does, and redraws a region besides."""

import numpy as np
import pytest
import torch
from PIL import Image

from pictish import Pipeline
from pictish.cli import main
from pictish.data.provenance import read_origin
from pictish.pipelines.region import Region, cells_in, cells_under, parse_region
from pictish.pipelines.settings import GenerationConfig
from pictish.pipelines.text_to_image import TextToImage


@pytest.fixture(scope="module")
def source():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))


def test_it_generates_describes_and_edits_with_no_option(masked_model, source):
    pipe = Pipeline.from_pretrained(masked_model, device="cpu")
    first, again = (pipe.generate_tokens("a red apple", seed=3) for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    assert first.cells is not None
    assert len(pipe.generate_tokens("a red apple", min_codes=2, max_codes=2)) == 2
    assert pipe.generate("a red apple", num_images=2, size=32)[0].size == (32, 32)
    assert isinstance(pipe.describe(source, max_new_tokens=6), str)
    assert isinstance(pipe.describe(source, "what is it?", max_new_tokens=6), str)


def test_it_ranks_no_candidates(masked_model):
    drawer = TextToImage.from_folder(masked_model)
    with pytest.raises(ValueError, match="best_of: 2 asked for, and this model cannot rank"):
        drawer.tokens([["a red apple"]], [torch.Generator()], GenerationConfig(best_of=2))
    defaults = drawer.language.model.defaults
    drawing = defaults.drawing.model_copy(update={"best_of": 2})
    drawer.language.model.defaults = defaults.model_copy(update={"drawing": drawing})
    assert drawer.checked(GenerationConfig(), pictures=False).best_of == 1


def test_a_region_changes_and_nothing_else(masked_model, source, tmp_path, monkeypatch):
    pipe = Pipeline.from_pretrained(masked_model, device="cpu")
    assert pipe.edit(source, "a car", region=(0, 0, 45, 60), size=48).size == (48, 32)
    source.save(tmp_path / "source.png")
    monkeypatch.chdir(tmp_path)
    asked = ["edit", "source.png", "a car", "--region", "30,20,30,20", "--model", str(masked_model)]
    assert main([*asked, "--device", "cpu", "--quiet"]) == 0
    origin = read_origin(tmp_path / "edited" / "source-a-car-0.png")
    assert origin.region == "30,20,30,20"
    before, after = pipe.tokenize(source), origin.image()
    touched = cells_in(Region(30, 20, 30, 20), (60, 90), before.grid)
    kept = [
        {(int(code), int(cell)) for code, cell in zip(one.ids, one.cells, strict=True) if not touched[cell]}
        for one in (before, after)
    ]
    assert kept[0] == kept[1]
    with pytest.raises(ValueError, match="region 80,0,20,20: outside the image; within 0,0,90,60 would fit"):
        pipe.edit(source, "a car", region=(80, 0, 20, 20))


def test_cells_that_a_region_touches():
    assert cells_in(Region(0, 0, 90, 60), (60, 90), (4, 4)).all()
    assert cells_in(Region(0, 0, 1, 1), (60, 90), (4, 4)).nonzero()[0].tolist() == [0]
    assert cells_in(Region(22, 14, 2, 2), (60, 90), (4, 4)).nonzero()[0].tolist() == [0, 1, 4, 5]
    for wrong in (Region(0, 0, 0, 5), Region(-1, 0, 5, 5), Region(0, 50, 5, 11)):
        with pytest.raises(ValueError, match="outside the image"):
            cells_in(wrong, (60, 90), (4, 4))
    for text in ("1,2,3", "a,b,c,d", "", "1,2,3,4,5"):
        with pytest.raises(ValueError, match="four whole numbers X,Y,WIDTH,HEIGHT would fit"):
            parse_region(text)


def test_cells_that_a_mask_reaches_into():
    mask = Image.new("L", (90, 60))
    mask.paste(255, (22, 14, 24, 16))
    assert cells_under(mask, (4, 4)).nonzero()[0].tolist() == [0, 1, 4, 5]
    assert cells_under(Image.new("L", (3, 2), 255), (4, 4)).all()
