"""diffusers' networks in the shapes of LaVIT's decoder: they train, draw, and load with stock diffusers."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)

from pictish.decoder.config import ObjectiveConfig
from pictish.decoder.denoiser import build_latents
from pictish.decoder.diffusion import DiffusionDecoder, load_diffusion, save_diffusion
from pictish.decoder.objective import Batch, diffusion_losses
from pictish.decoder.pixel import Decoder
from tests.decoder.tiny import (
    SDXL,
    TRANSFORMER,
    UNET,
    conditioning_of,
    config,
    decode,
    decoder_of,
    save_autoencoder,
    teacher,
)

EPSILON = {"kind": "diffusion", "predicts": "epsilon", "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory) -> dict[str, dict]:
    """Settings of the two kinds, by kind."""
    found = {}
    for kind in ("kl", "tiny"):
        folder = save_autoencoder(tmp_path_factory.mktemp(kind), kind)
        found[kind] = {"kind": kind, "folder": str(folder)}
    return found


def shape(name: str, autoencoders: dict[str, dict]):
    match name:
        case "sd15":
            condition = {"channels": 0, "width": 16, "sequence": ["features", "codes"]}
            return config(UNET, noise=EPSILON, autoencoder=autoencoders["kl"], condition=condition)
        case "sdxl":
            condition = {"channels": 1, "width": 16, "pooled": 12, "source": True}
            return config(
                SDXL,
                noise={**EPSILON, "predicts": "v"},
                autoencoder=autoencoders["tiny"],
                condition=condition,
            )
        case "pixart":
            return config(residual=0.3)
    raise AssertionError(name)


def batch_of(tokenizer, count: int = 4) -> Batch:
    conditioning = conditioning_of(tokenizer, count)
    assert conditioning.pixels is not None
    return Batch(
        conditioning.features, conditioning.codes, conditioning.real, conditioning.pixels, conditioning.pixels
    )


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart"])
def test_it_trains_draws_and_loads_with_stock_diffusers(tokenizer, tokens, autoencoders, tmp_path, name):
    settings = shape(name, autoencoders)
    model = decoder_of(tokenizer, settings)
    objective = ObjectiveConfig(dropout=0.5, source=0.5)
    encoder, generator = teacher(), torch.Generator().manual_seed(0)
    losses = diffusion_losses(model, model, encoder, batch_of(tokenizer), objective, generator)
    losses["loss"].backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    silent = [p for p in trained if p.grad is None or not p.grad.any()]
    assert len(silent) < 0.1 * len(trained)
    torch.optim.SGD(trained, 1e-3).step()
    save_diffusion(tmp_path / "decoder", model, tokenizer.fingerprint, half=False)
    files = [path.suffix for path in (tmp_path / "decoder").rglob("*") if path.is_file()]
    assert set(files) == {".yaml", ".json", ".safetensors"}

    network = PixArtTransformer2DModel if name == "pixart" else UNet2DConditionModel
    stock = network.from_pretrained(tmp_path / "decoder", subfolder="denoiser")
    equal_weights(stock, model.denoiser.network)
    if name != "pixart":
        kind = AutoencoderKL if name == "sd15" else AutoencoderTiny
        equal_weights(
            kind.from_pretrained(tmp_path / "decoder", subfolder="autoencoder"), model.latents.autoencoder
        )
    scheduler = FlowMatchEulerDiscreteScheduler if name == "pixart" else DDIMScheduler
    loaded = scheduler.from_pretrained(tmp_path / "decoder", subfolder="scheduler")
    if name != "pixart":
        assert loaded.config.beta_schedule == "scaled_linear"

    again = load_diffusion(tmp_path / "decoder", tokenizer)
    equal_weights(again, model)
    drawn = [
        decode(
            Decoder(network, tokenizer, "0" * 12),
            tokens[:2],
            [torch.Generator().manual_seed(i) for i in (0, 1)],
        )
        for network in (model, again)
    ]
    assert drawn[0].shape == (2, 16, 16, 3)
    assert torch.equal(*drawn)
    assert drawn[0].float().std() > 1


def equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours = other.state_dict()
    assert one.state_dict().keys() == ours.keys()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in one.state_dict().items())


def test_half_precision_is_read_as_single(tokenizer, tmp_path):
    model = decoder_of(tokenizer)
    save_diffusion(tmp_path / "decoder", model, tokenizer.fingerprint)
    again = load_diffusion(tmp_path / "decoder", tokenizer)
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].half().float())


def start_folder(folder: Path, network: torch.nn.Module, name: str) -> str:
    network.save_pretrained(folder / name)
    return str(folder)


def test_a_local_diffusers_folder_is_the_start(tokenizer, autoencoders, tmp_path):
    given = decoder_of(tokenizer, shape("sd15", autoencoders), seed=5).denoiser.network
    folder = start_folder(tmp_path, given, "unet")
    settings = shape("sd15", autoencoders)
    torch.manual_seed(0)
    started = {**settings.model_dump(), "denoiser": {"kind": "unet", "folder": folder}}
    model = DiffusionDecoder(type(settings).model_validate(started), tokenizer)
    equal_weights(model.denoiser.network, given)
    equal_weights(
        model.latents.autoencoder,
        AutoencoderKL.from_pretrained(autoencoders["kl"]["folder"], subfolder="vae"),
    )
    assert all(p.requires_grad for p in model.denoiser.parameters())
    assert not any(p.requires_grad for p in model.latents.parameters())


def test_pixart_starts_from_a_folder_too(tokenizer, tmp_path):
    given = decoder_of(tokenizer, seed=5).denoiser.network
    folder = start_folder(tmp_path, given, "transformer")
    model = decoder_of(tokenizer, config({"kind": "transformer", "folder": folder}))
    equal_weights(model.denoiser.network, given)


@pytest.mark.parametrize(
    ("condition", "residual", "line"),
    [
        ({"channels": 5, "width": 16}, None, "takes 5 channels, but the image has 3 and .* beside it 5"),
        ({"channels": 2, "width": 16}, 0.3, "and what is beside it 5; set .* residual to fit"),
        ({"channels": 2, "width": 24}, None, "attends to rows of width 16.*set condition.width"),
        ({"channels": 2, "width": 16, "pooled": 4}, None, "condition.pooled"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tokenizer, tmp_path, condition, residual, line):
    folder = start_folder(tmp_path, decoder_of(tokenizer, config(UNET)).denoiser.network, "unet")
    settings = config({"kind": "unet", "folder": folder}, condition=condition, residual=residual)
    with pytest.raises(ValueError, match=line):
        decoder_of(tokenizer, settings)


def test_a_folder_that_is_none_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no diffusers model; looked for unet/config\.json"):
        decoder_of(tokenizer, config({"kind": "unet", "folder": str(tmp_path)}))
    folder = start_folder(tmp_path, decoder_of(tokenizer).denoiser.network, "transformer")
    with pytest.raises(ValueError, match="it holds a PixArtTransformer2DModel, not a UNet2DConditionModel"):
        decoder_of(tokenizer, config({"kind": "unet", "folder": f"{folder}/transformer"}))
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="not a usable PixArtTransformer2DModel"):
        decoder_of(tokenizer, config({"kind": "transformer", "folder": folder}))


def test_sdxl_is_told_the_size_of_the_picture(tokenizer, tmp_path):
    """Also where the network it started from was made for another size."""
    condition = {"channels": 2, "width": 16, "pooled": 12}
    given = decoder_of(tokenizer, config(SDXL, condition=condition)).denoiser.network
    folder = Path(start_folder(tmp_path, given, "unet"))
    about = folder / "unet" / "config.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "sample_size": 128}))
    model = decoder_of(tokenizer, config({"kind": "unet", "folder": str(folder)}, condition=condition))
    seen = []
    model.denoiser.network.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        model(
            torch.randn(1, 3, 16, 32),
            torch.tensor([5.0]),
            conditioning_of(tokenizer, 1),
            torch.tensor([False]),
        )
    assert seen[0].tolist() == [[16, 32, 0, 0, 16, 32]]


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_latents_go_there_and_back_as_diffusers_says(autoencoders, kind):
    from pictish.configs import parse
    from pictish.decoder.config import AutoencoderConfig

    latents = build_latents(parse(AutoencoderConfig, autoencoders[kind], "test"))
    assert (latents.channels, latents.shrink) == (4, 2)
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        found = latents.encode(pictures)
        raw = latents.autoencoder.encode(pictures)
        raw = raw.latent_dist.mean if kind == "kl" else raw.latents
        assert torch.allclose(found, raw * latents.autoencoder.config.scaling_factor)
        assert found.shape == (2, 4, 8, 8)
        assert torch.allclose(latents.decode(found), latents.autoencoder.decode(raw).sample, atol=1e-5)
    assert not latents.train().autoencoder.training


def test_the_wrong_autoencoder_is_refused(tokenizer, autoencoders):
    wrong = {"kind": "tiny", "folder": autoencoders["kl"]["folder"]}
    with pytest.raises(ValueError, match="it holds a AutoencoderKL, not a AutoencoderTiny"):
        decoder_of(tokenizer, config(autoencoder=wrong))


@pytest.mark.parametrize(
    ("denoiser", "changes", "line"),
    [
        (TRANSFORMER, {"num_layer": 3}, "denoiser.settings: PixArtTransformer2DModel knows no num_layer"),
        (TRANSFORMER, {"in_channels": 3}, "denoiser.settings: in_channels follow from the rest"),
        (UNET, {"down_block_types": ["Nothing"]}, "denoiser.settings: UNet2DConditionModel refuses them"),
        (UNET, {"norm_num_groups": 5}, "denoiser.settings: UNet2DConditionModel refuses them"),
        (TRANSFORMER, {"patch_size": 3}, "side: .*patch_size 3"),
    ],
)
def test_settings_that_diffusers_refuses(tokenizer, denoiser, changes, line):
    settings = {**denoiser["settings"], **changes}
    with pytest.raises(ValueError, match=line):
        decoder_of(tokenizer, config({**denoiser, "settings": settings}))


@pytest.mark.parametrize("side", [18, 30])
def test_a_side_that_does_not_fit_the_grid(tokenizer, side):
    with pytest.raises(ValueError, match=f"side: {side} pixels do not fit 4 x 4 cells; give a multiple of 4"):
        decoder_of(tokenizer, config(side=side))
