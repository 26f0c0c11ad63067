"""Vision towers of timm and transformers, read at any block, and what stands behind them."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipConfig, SiglipModel

from pictish.lm.vision.config import (
    LinearProjector,
    MlpProjector,
    ResamplerProjector,
    TilesConfig,
    TimmTower,
    TransformersTower,
    VisionConfig,
)
from pictish.lm.vision.model import Placed, Vision, places_of
from pictish.lm.vision.projectors import build_projector, cells_behind
from pictish.lm.vision.tiles import Layout
from pictish.lm.vision.tower import VisionEncoder, resolved

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 29,  # as SigLIP's 384 for 27 patches of 14: the rest is not seen
    "patch_size": 7,
}
VIT = TimmTower(
    model="vit_tiny_patch16_224",
    settings={"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2},
)


def tower(architecture: str, **more) -> TransformersTower:
    kept = {
        n: v for n, v in SMALL.items() if n != "intermediate_size" or not architecture.startswith("dinov2")
    }
    return TransformersTower(architecture=architecture, settings={**kept, **more})


TOWERS = [
    tower("siglip_vision_model", vision_use_head=False),
    tower("clip_vision_model"),
    tower("dinov2", image_size=28),
    tower("dinov3_vit", image_size=28),
    VIT,
    TimmTower(model="test_resnet.r160_in1k"),
]


def encoder(config, **more) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(VisionConfig(tower=config, **more)).eval()


def views(count: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("config", TOWERS, ids=lambda one: getattr(one, "architecture", None) or one.model)
def test_every_tower_gives_a_row_for_each_cell(config):
    made = encoder(config)
    pixels = views(3, made.side)
    with torch.no_grad():
        rows = made(pixels)
        assert rows.shape == (3, made.cells[0] * made.cells[1], made.features)
        assert torch.allclose(rows[1:2], made(pixels[1:2]), atol=1e-5), "a view's rows are its own"
        turned = pixels.clone()
        turned[:, -made.side // 4 :] = 0  # the lowest cells
        moved = (made(turned) - rows).abs().amax(dim=(0, 2))
    assert moved.max() > 1e-4


def test_the_last_but_one_block_is_what_that_block_gives_and_later_ones_are_gone():
    config = CLIPVisionConfig(**SMALL)
    torch.manual_seed(0)
    theirs = CLIPVisionModel(config).eval()
    ours = VisionEncoder(VisionConfig(tower=tower("clip_vision_model"), layer=-2)).eval()
    kept = {n: t for n, t in theirs.state_dict().items() if ".layers.2." not in n}
    ours.tower.load_state_dict(kept)
    pixels = views(2, 29)
    shown = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        known = theirs(pixel_values=shown, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert torch.allclose(ours(pixels), known, atol=1e-6)
        normed = VisionEncoder(VisionConfig(tower=tower("clip_vision_model"), norm=True)).eval()
        normed.tower.load_state_dict(theirs.state_dict())
        assert torch.allclose(normed(pixels), theirs(pixel_values=shown).last_hidden_state[:, 1:], atol=1e-6)


def test_timm_blocks_are_counted_from_the_last_too():
    first, last = encoder(VIT, layer=-3), encoder(VIT)
    pixels = views(1, 32)
    with torch.no_grad():
        known = last.tower.forward_intermediates(
            (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5, indices=[0], intermediates_only=True
        )[0]
        assert torch.allclose(first(pixels), known.flatten(2).transpose(1, 2), atol=1e-6)
        assert not torch.allclose(first(pixels), last(pixels), atol=1e-3)


def test_a_tower_of_a_folder_with_a_text_tower_beside_it(tmp_path):
    text = {k: v for k, v in SMALL.items() if "size" not in k or k.startswith(("hidden", "inter"))}
    both = SiglipModel(SiglipConfig(vision_config=SMALL, text_config={**text, "vocab_size": 20}))
    both.save_pretrained(tmp_path)
    made = encoder(TransformersTower(weights=str(tmp_path)), layer=-2)
    theirs = both.vision_model.state_dict()["encoder.layers.0.mlp.fc1.weight"]
    assert torch.equal(made.tower.state_dict()["encoder.layers.0.mlp.fc1.weight"], theirs)
    again = resolved(VisionConfig(tower=TransformersTower(weights=str(tmp_path)), layer=-2), made)
    assert again.tower.weights is None
    other = VisionEncoder(again).eval()
    other.load_state_dict(made.state_dict())
    pixels = views(1, made.side)
    assert torch.equal(other(pixels), made(pixels))
    assert other.fingerprint == made.fingerprint


def test_the_fingerprint_is_of_weights_and_of_how_they_are_read():
    made = encoder(VIT)
    assert made.fingerprint == encoder(VIT).fingerprint
    assert made.fingerprint != encoder(VIT, layer=-2).fingerprint
    assert made.fingerprint != encoder(VIT, mean=(0.4, 0.5, 0.5)).fingerprint
    with torch.no_grad():
        next(made.tower.parameters()).add_(1)
    assert made.fingerprint != encoder(VIT).fingerprint


def test_timm_weights_of_a_file(tmp_path):
    made = encoder(VIT)
    save_file(made.tower.state_dict(), tmp_path / "vit.safetensors")
    torch.manual_seed(5)
    again = VisionEncoder(
        VisionConfig(tower=VIT.model_copy(update={"weights": str(tmp_path / "vit.safetensors")}))
    )
    assert again.fingerprint == made.fingerprint
    save_file({"strange": torch.zeros(1)}, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="missing or misshapen"):
        VisionEncoder(
            VisionConfig(tower=VIT.model_copy(update={"weights": str(tmp_path / "vit.safetensors")}))
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tower": {"kind": "timm", "model": "vit_nothing"}}, "timm knows no 'vit_nothing'"),
        ({"tower": VIT, "layer": -4}, "has 3 blocks"),
        ({"tower": tower("clip_vision_model"), "layer": -9}, "the tower has 3 blocks"),
        ({"tower": {"kind": "transformers"}}, "an architecture, or a folder"),
        ({"tower": {"kind": "transformers", "architecture": "nothing"}}, "tower: "),
        ({"tower": tower("clip_vision_model", strange=1)}, "no setting 'strange'"),
        ({"tower": {"kind": "transformers", "architecture": "gpt2"}}, "does not cut square pictures"),
        ({"tower": VIT, "layer": -2, "norm": True}, "-1 would fit"),
        ({"tower": VIT, "tiles": {}, "projector": {"kind": "resampler"}}, "mlp would fit"),
    ],
)
def test_what_cannot_be_a_tower_is_said_in_a_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        VisionEncoder(VisionConfig.model_validate(settings))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [LinearProjector(), MlpProjector(), MlpProjector(layers=3), ResamplerProjector(queries=5, heads=2)],
)
def test_projectors_go_from_rows_to_embeddings(config):
    torch.manual_seed(0)
    projector = build_projector(config, 6, 8, (3, 4))
    rows = torch.randn(2, 12, 6, requires_grad=True)
    made = projector(rows)
    h, w = cells_behind(config, (3, 4))
    assert made.shape == (2, h * w, 8)
    made.square().sum().backward()
    assert (rows.grad.abs().sum(dim=2) > 0).all(), "every cell is heard"
    assert all(p.grad is not None for p in projector.parameters())


def test_a_resampler_knows_where_cells_are():
    torch.manual_seed(0)
    projector = build_projector(ResamplerProjector(queries=3, heads=2), 6, 8, (3, 4))
    rows = torch.randn(1, 12, 6)
    assert not torch.allclose(projector(rows), projector(rows.flip(1)), atol=1e-4)


def test_rows_of_several_pictures_are_those_of_each_alone():
    torch.manual_seed(0)
    config = VisionConfig(tower=VIT, tiles=TilesConfig(wide=2, high=2), micro_batch=2)
    vision = Vision(config, 8).eval()
    placed = [
        Placed(0, 3, views(3, 32), Layout(vision.cells, tiles=(1, 2))),
        Placed(1, 0, views(1, 32), Layout(vision.cells, ended=True)),
    ]
    with torch.no_grad():
        both = vision(placed)
        each = [vision([one]) for one in placed]
    assert torch.allclose(both, torch.cat(each), atol=1e-5)
    places = places_of(placed)
    assert places.shape == (2, len(both))
    assert places[:, 0].tolist() == [0, 3]
    assert places[:, len(each[0])].tolist() == [1, 0]
