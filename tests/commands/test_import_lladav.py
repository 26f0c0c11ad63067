"""`pictish import llada` and `import lladav`: what lies in OUT, and every way a checkpoint can be wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pictish.cli import main
from pictish.io.model_folder import read_config
from pictish.lm.lladav_table import renamed
from pictish.lm.lladav_vision import layout_settings
from pictish.lm.model import UnifiedModel
from pictish.lm.vision.model import Placed
from tests import lladav
from tests.lm.seeing import noise

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    lladav.write_llada(folder / "llada")
    lladav.write_llada(folder / "renamed", theirs=False)
    lladav.write_lladav(folder / "lladav")
    lladav.write_lladav(folder / "towerless", tower=False)
    lladav.write_tower(folder / "siglip")
    lladav.write_stage_1(folder / "stage1")
    return folder


def run(*arguments: object) -> int:
    return main(["import", *map(str, arguments), "--quiet"])


@pytest.fixture(scope="module")
def imported(sources, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("imported")
    assert run("llada", sources / "llada", out / "llada") == 0
    assert run("llada", sources / "renamed", out / "renamed") == 0
    assert run("lladav", sources / "lladav", out / "lladav") == 0
    beside = ("--vision-tower", sources / "siglip")
    assert run("lladav", sources / "towerless", out / "towerless", *beside) == 0
    base = ("--base", sources / "llada", *beside)
    assert run("lladav", sources / "stage1", out / "stage1", *base) == 0
    return out


def test_both_layouts_give_the_same_model(imported):
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        models = [UnifiedModel.from_folder(imported / name) for name in ("llada", "renamed")]
        one, other = (model.language(inputs_embeds=model.embed(ids)).logits for model in models)
    assert torch.equal(one, other)
    assert [model.vocabulary.mask for model in models] == [lladav.mask_id()] * 2, (
        "told, or by the token's name"
    )
    assert models[0].language.config.rope_parameters["rope_theta"] == 500000


def test_transformers_reads_it_in_both_directions_too(imported):
    model = AutoModelForCausalLM.from_pretrained(imported / "llada" / "lm").eval()
    ids = torch.arange(3, 20)[None]
    changed = ids.clone()
    changed[0, -1] = 30
    with torch.no_grad():
        assert (model(ids).logits - model(changed).logits)[0, 0].abs().max() > 1e-4
        ours = UnifiedModel.from_folder(imported / "llada", dtype=torch.bfloat16).language
        assert torch.equal(ours(ids).logits, model(ids).logits)


def test_a_lladav_sees_through_its_tower(imported):
    model = UnifiedModel.from_folder(imported / "lladav")
    assert model.masked is not None
    vision = model.vision
    assert vision.config.tower.settings["num_hidden_layers"] == lladav.SIGHT_LAYERS - 1
    assert (vision.encoder.side, vision.encoder.cells) == (lladav.SIDE, (4, 4))
    assert vision.config.tiles.grids == tuple((x, y) for x in (1, 2, 3) for y in (1, 2, 3))
    tower = lladav.tower_tensors()
    weight = vision.encoder.tower.state_dict()["encoder.layers.1.mlp.fc1.weight"]
    assert torch.equal(weight, tower[f"{lladav.TOWER}encoder.layers.1.mlp.fc1.weight"].float())
    seen = vision.look(noise(0, 40, 30))
    rows = vision([Placed(0, 0, torch.from_numpy(seen.views), seen.layout)])
    assert rows.shape == (seen.layout.length, lladav.WIDTH)
    newline = lladav.drawn({"model.image_newline": (lladav.WIDTH,)}, 3)["model.image_newline"].float()
    assert torch.equal(rows[-1], newline)


def test_a_tower_beside_and_a_stage_1_projector(imported):
    inside, beside, first = (
        load_file(imported / name / "lm" / "vision.safetensors") for name in ("lladav", "towerless", "stage1")
    )
    assert inside.keys() == beside.keys() == first.keys()
    deep = "encoder.tower.encoder.layers.0.mlp.fc1.weight"
    assert beside[deep].shape == inside[deep].shape
    assert torch.equal(first["projector.0.weight"], inside["projector.0.weight"])
    assert not first["separator"].any(), "stage 1 has none"
    model = UnifiedModel.from_folder(imported / "stage1")
    assert model.vision.config.tiles is None, "stage 1 sees one view"
    assert model.vision.look(noise(0, 40, 30)).layout.length == 16


def test_out_has_a_card_and_plain_files(imported):
    assert sorted(path.name for path in (imported / "lladav").iterdir()) == ["README.md", "lm"]
    assert "licence" in (imported / "lladav" / "README.md").read_text("utf-8")
    config = read_config(imported / "lladav" / "lm")
    assert config["image_tokens"] is None
    assert config["mask"] == lladav.mask_id()
    assert "auto_map" not in json.loads((imported / "llada" / "lm" / "config.json").read_text())


# ---- what can be wrong


@pytest.fixture
def copied(sources, tmp_path) -> Path:
    shutil.copytree(sources / "lladav", tmp_path / "source")
    return tmp_path / "source"


def change(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors wherever they lie, add new ones to the first file, or leave them out (None)."""
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        file = folder / places.get(name, FIRST)
        tensors = load_file(file)
        tensors.pop(name, None)
        places.pop(name, None)
        if tensor is not None:
            tensors[name], places[name] = tensor, file.name
        save_file(tensors, file)
    index.write_text(json.dumps({"weight_map": places}))


def settings(folder: Path, **changes) -> None:
    path = folder / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not ...}))


def refused(capsys, kind: str, source: Path, tmp_path: Path, *more: object) -> str:
    """What is said when an import is refused with exit code 2 and nothing written."""
    before = sorted(tmp_path.iterdir())
    assert run(kind, source, tmp_path / "out", *more) == 2
    assert sorted(tmp_path.iterdir()) == before
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_every_difference_is_told_at_once(copied, tmp_path, capsys):
    change(
        copied,
        lm_head__weight=None,
        model__strange__weight=torch.zeros(2),
        model__norm__weight=torch.zeros(3),
        model__mm_projector__0__bias=None,
    )
    said = refused(capsys, "lladav", copied, tmp_path)
    assert "1 missing: lm_head.weight" in said
    assert "1 unexpected: model.strange.weight" in said
    assert "model.norm.weight 3 instead of 32" in said
    assert "1 missing: model.mm_projector.0.bias" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "does not divide"),
        ({"num_attention_heads": ...}, "num_attention_heads is None"),
        ({"num_attention_heads": "many"}, "num_attention_heads is 'many'"),
        ({"image_aspect_ratio": "anyres_min_4"}, "known here are"),
        ({"mm_newline_position": "one_token"}, "known here is 'grid'"),
        ({"image_grid_pinpoints": [[1]]}, "no pairs"),
        ({"image_grid_pinpoints": [[10**9, 1]]}, "16384 pixels"),
        ({"mm_spatial_pool_stride": 0}, "small whole number"),
        ({"mask_token_id": 5}, "stands for text"),
        ({"mask_token_id": -1}, "no mask is known"),
        ({"mask_token_id": 10**6}, "ids"),
        ({"rope_theta": "x"}, "rope_theta is 'x'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_scaling is not supported"),
        ({"max_position_embeddings": 0}, "whole number of tokens"),
        ({"mm_vision_heads": ...}, "how many heads"),
    ],
)
def test_settings_that_make_no_sense(copied, tmp_path, capsys, changes, message):
    settings(copied, **changes)
    assert message in refused(capsys, "lladav", copied, tmp_path)


def test_damaged_and_hostile_files(copied, sources, tmp_path, capsys):
    def spoilt(name: str, blob: bytes) -> str:
        kept = (copied / name).read_bytes()
        (copied / name).write_bytes(blob)
        said = refused(capsys, "lladav", copied, tmp_path)
        (copied / name).write_bytes(kept)
        return said

    assert "not the settings" in spoilt("config.json", b"[" * 100000)
    assert "safetensors file, or a damaged one" in spoilt(FIRST, b"nothing")
    outside = json.dumps({"weight_map": {"lm_head.weight": "../x.safetensors"}}).encode()
    assert "not the name of a file beside it" in spoilt("model.safetensors.index.json", outside)
    assert "tokenizer.json" in spoilt("tokenizer.json", b"{}")
    lost = json.dumps({"weight_map": {"a": FIRST, "lm_head.weight": SECOND}}).encode()
    assert "1 missing: a" in spoilt("model.safetensors.index.json", lost)
    change(copied, **{"model__layers__99999__mlp__up_proj__weight": torch.zeros(1)})
    assert "numbered up to 99999" in refused(capsys, "lladav", copied, tmp_path)

    stage = tmp_path / "stage"
    shutil.copytree(sources / "stage1", stage)
    beside = ("--base", sources / "llada", "--vision-tower", sources / "siglip")
    (stage / "mm_projector.bin").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    assert "refused" in refused(capsys, "lladav", stage, tmp_path, *beside)
    torch.save({"model.vision_resampler.x": torch.zeros(1)}, stage / "mm_projector.bin")
    assert "unexpected: model.vision_resampler.x" in refused(capsys, "lladav", stage, tmp_path, *beside)
    assert "--base" in refused(capsys, "lladav", stage, tmp_path)


def test_a_lladav_is_no_llada_and_a_tower_must_lie_somewhere(sources, tmp_path, capsys):
    assert "unexpected: model.image_newline" in refused(capsys, "llada", sources / "lladav", tmp_path)
    assert "--vision-tower" in refused(capsys, "lladav", sources / "towerless", tmp_path)
    assert "no such folder" in refused(capsys, "lladav", sources / "nothing", tmp_path)


def test_names_and_layouts():
    assert renamed("model.transformer.blocks.12.ff_out.weight") == "model.layers.12.mlp.down_proj.weight"
    assert renamed("model.transformer.ff_out.weight") == "lm_head.weight"
    assert renamed("model.layers.3.mlp.up_proj.weight") == "model.layers.3.mlp.up_proj.weight"
    assert layout_settings({"image_aspect_ratio": "anyres_max_9"}).largest == 9
    assert not layout_settings({"image_aspect_ratio": "pad"}).tiled
