"""LaVIT's tensors under our names: numbers against the formulas written out, faults told."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pictish.data.images import png_bytes
from pictish.data.importing import Source, write_pieces
from pictish.data.loader import ImageBytes
from pictish.io.model_folder import fingerprint
from pictish.lm.config import DefaultsConfig
from pictish.pipelines.language import Language
from pictish.pipelines.lm_training import image_encoder, image_tokens_of
from pictish.tokenizer.dynamic import Tokenizer
from pictish.tokenizer.lavit import Heads, plan_tokenizer, plan_understanding
from tests import lavit
from tests.tokenizer.conftest import random_pixels


def imported(folder: Path, out: Path) -> Tokenizer:
    source = Source(folder)
    part, config = plan_tokenizer(source, None, "exact")
    assert source.wrong == []
    understanding = plan_understanding(source, config)
    name = ""
    for each in (part, understanding):
        for file, pieces in each.weights.items():
            write_pieces(out / each.name / file, pieces, lambda steps: None)
        each.finish(out / each.name, name)
        name = name or fingerprint(out / each.name)
    return Tokenizer.from_folder(out)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lavit") / "checkpoint"
    lavit.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(source, tmp_path_factory) -> Tokenizer:
    return imported(source, tmp_path_factory.mktemp("out") / "model")


@pytest.fixture(scope="module")
def pixels(tokenizer) -> torch.Tensor:
    return random_pixels(3, tokenizer.image_size)


def linear(tensors, name, x):
    return F.linear(x, tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float())


def norm(tensors, name, x, eps=1e-5):
    weight, bias = tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def heads(x):
    return x.unflatten(-1, (lavit.HEADS, -1)).transpose(1, 2)


def test_sizes_come_from_the_tensors(tokenizer):
    config = tokenizer.network.config
    assert (tokenizer.image_size, tokenizer.grid) == (lavit.SIDE * 14, (lavit.SIDE, lavit.SIDE))
    assert (config.width, config.merger.layers, tokenizer.codebook_size) == (
        lavit.WIDTH,
        lavit.LAYERS,
        lavit.CODES,
    )
    assert config.encoder.settings["num_heads"] == config.heads == lavit.HEADS


def test_the_encoder_is_pre_norm_without_a_last_norm(source, tokenizer, pixels):
    t = lavit.read(source / lavit.EVA)
    encoder = tokenizer.network.encoder
    shown = (pixels.permute(0, 3, 1, 2).float() / 255 - encoder.rgb_mean) / encoder.rgb_std
    weight, bias = t["patch_embed.proj.weight"].float(), t["patch_embed.proj.bias"].float()
    x = F.conv2d(shown, weight, bias, stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([t["cls_token"].float().expand(len(x), -1, -1), x], dim=1) + t["pos_embed"].float()
    for n in range(lavit.LAYERS):
        b = f"blocks.{n}"
        bias = torch.cat([t[f"{b}.attn.q_bias"], torch.zeros(lavit.WIDTH), t[f"{b}.attn.v_bias"]]).float()
        qkv = F.linear(norm(t, f"{b}.norm1", x, 1e-6), t[f"{b}.attn.qkv.weight"].float(), bias)
        q, k, v = (heads(part) for part in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(t, f"{b}.attn.proj", mixed)
        x = x + linear(t, f"{b}.mlp.fc2", F.gelu(linear(t, f"{b}.mlp.fc1", norm(t, f"{b}.norm2", x, 1e-6))))
    assert torch.allclose(encoder(pixels), x[:, 1:], atol=1e-4)


def test_scores_are_the_difference_of_two_logits(source, tokenizer, pixels):
    t = lavit.read(source / lavit.TOKENIZER)
    hidden = tokenizer.network.encoder(pixels)
    p = "token_predictor"
    own, shared = F.gelu(linear(t, f"{p}.in_conv.1", norm(t, f"{p}.in_conv.0", hidden))).chunk(2, dim=-1)
    x = torch.cat([own, shared.mean(1, keepdim=True).expand_as(own)], dim=-1)
    x = F.gelu(linear(t, f"{p}.out_conv.2", F.gelu(linear(t, f"{p}.out_conv.0", x))))
    x = linear(t, f"{p}.out_conv.4", x)
    scores = tokenizer.network.selector(hidden)
    assert torch.allclose(F.logsigmoid(scores), x.log_softmax(-1)[..., 0], atol=1e-4)
    kept = (scores > 0).float().mean()
    assert 0.05 < kept < 0.95, "the checkpoint's scores must differ for the tests to mean something"


def test_codes_are_those_of_the_raw_rows_of_the_codebook(source, tokenizer, pixels):
    t = lavit.read(source / lavit.TOKENIZER)
    encoded = tokenizer.encode(pixels, sizes=[(50, 50)] * len(pixels), features_for="quantization")
    tokens = [one.tokens for one in encoded]
    for token, merged in zip(tokens, (torch.from_numpy(one.features) for one in encoded), strict=True):
        z = linear(t, "encode_task_layer.2", torch.tanh(linear(t, "encode_task_layer.0", merged)))
        distances = torch.cdist(F.normalize(z, dim=-1), t["quantize.embedding.weight"].float())
        assert token.ids.tolist() == distances.argmin(1).tolist()
    assert len({int(code) for token in tokens for code in token.ids}) > 5


def test_the_code_decoder_sees_codes_in_order_without_a_norm(source, tokenizer, pixels):
    t = lavit.read(source / lavit.HIGHRES)
    (token,) = tokenizer.tokenize_pixels(pixels[:1], [(50, 50)])
    book = lavit.read(source / lavit.TOKENIZER)["quantize.embedding.weight"].float()
    codes = linear(t, "in_proj", book[token.ids.tolist()][None]) + t["pos_embed"].float()[:, : len(token)]
    x = t["query_embed"].float()
    for n in range(lavit.LAYERS):
        b = f"blocks.{n}"
        qkv = linear(t, f"{b}.self_attn.qkv", norm(t, f"{b}.norm0", x))
        q, k, v = (heads(part) for part in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(t, f"{b}.self_attn.proj", mixed)
        q = heads(linear(t, f"{b}.cross_attn.query", norm(t, f"{b}.norm1", x)))
        k, v = (heads(linear(t, f"{b}.cross_attn.{part}", codes)) for part in ("key", "value"))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(t, f"{b}.cross_attn.proj", mixed)
        x = x + linear(t, f"{b}.mlp.fc2", F.gelu(linear(t, f"{b}.mlp.fc1", norm(t, f"{b}.norm2", x))))
    x = torch.tanh(linear(t, "decode_task_layer.0", norm(t, "norm", x)))
    assert torch.allclose(tokenizer.reconstruct([token]), linear(t, "decode_task_layer.2", x), atol=1e-4)


def test_features_for_understanding_are_those_of_its_merger(tokenizer, pixels):
    sizes = [(50, 50)] * len(pixels)
    quantized = tokenizer.encode(pixels, sizes=sizes, features_for="quantization")
    understood = tokenizer.encode(pixels, sizes=sizes, features_for="understanding")
    for one, other in zip(quantized, understood, strict=True):
        assert one.tokens == other.tokens
        assert one.features.shape == other.features.shape == (len(one.tokens), lavit.WIDTH)
    assert not np.allclose(understood[0].features, quantized[0].features, atol=0.1)
    (alone,) = tokenizer.encode(pixels[1:2], sizes=sizes[:1], features_for="understanding")
    assert np.array_equal(alone.features, understood[1].features)
    assert tokenizer.encode(pixels, sizes=sizes)[0].features is None


def test_training_reads_the_features_that_inference_reads(tokenizer):
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8))
    (encoded,) = image_encoder(tokenizer)([ImageBytes(png_bytes(picture), "a.png")])
    reads_features = SimpleNamespace(
        projector=object(), image_tokens=image_tokens_of(tokenizer), defaults=DefaultsConfig()
    )
    (part,) = Language(tokenizer, reads_features).parts([picture], continuous=True)
    assert np.array_equal(part.values, encoded.features)
    (quantized,) = tokenizer.encode([picture], features_for="quantization")
    assert not np.allclose(part.values, quantized.features, atol=0.1)


def test_a_merger_for_another_tokenizer_is_refused(source, tmp_path, pixels):
    lavit.write_tokenizer(tmp_path / "a" / "other", seed=5)
    imported(source, tmp_path / "one")
    imported(tmp_path / "a" / "other", tmp_path / "two")
    (tmp_path / "one" / "understanding").rename(tmp_path / "mine")
    (tmp_path / "two" / "understanding").rename(tmp_path / "one" / "understanding")
    sizes = [(50, 50)] * len(pixels)
    with pytest.raises(ValueError, match="a merger for understanding with tokenizer"):
        Tokenizer.from_folder(tmp_path / "one").encode(pixels, sizes=sizes, features_for="understanding")


def test_without_a_code_decoder_codes_cannot_be_turned_back(tmp_path, pixels):
    lavit.write_tokenizer(tmp_path / "s", decoder=False)
    tokenizer = imported(tmp_path / "s", tmp_path / "out")
    tokens = tokenizer.tokenize_pixels(pixels, [(9, 9)] * len(pixels))
    with pytest.raises(ValueError, match="nothing that turns codes back"):
        tokenizer.reconstruct(tokens)


def test_types_are_those_of_the_file_but_for_what_is_computed(source, tokenizer, tmp_path):
    part, _ = plan_tokenizer(Source(source), None, "exact")
    types = {piece.name: piece.dtype for piece in part.weights["model.safetensors"]}
    wide = {name for name, dtype in types.items() if dtype is torch.float32}
    assert wide == {
        "encoder.mean",
        "encoder.scale",
        "selector.level",
        "selector.score.4.weight",
        "selector.score.4.bias",
    }


def faults(folder: Path, heads: Heads | None = None) -> str:
    source = Source(folder)
    plan_tokenizer(source, heads, "exact")
    return "\n".join(source.wrong)


def test_missing_unexpected_and_misshapen_keys_are_told_together(tmp_path):
    folder = tmp_path / "s"
    lavit.write_tokenizer(folder)
    lavit.change(folder / lavit.TOKENIZER, encode_task_layer__0__bias=None, extra=torch.ones(2))
    lavit.change(folder / lavit.EVA, blocks__1__norm2__bias=torch.ones(3))
    lavit.change(folder / lavit.HIGHRES, in_proj__bias=None)
    said = faults(folder)
    assert "tokenizer_encoder.bin: 1 missing: encode_task_layer.0.bias" in said
    assert "tokenizer_encoder.bin: 1 unexpected: extra 2" in said
    assert f"eva_vitg_psz14.bin: 1 misshapen: blocks.1.norm2.bias 3 instead of {lavit.WIDTH}" in said
    assert "highres_tokenizer_decoder.bin: 1 missing: in_proj.bias" in said


def test_heads_that_nothing_tells_are_asked_for(tmp_path):
    lavit.write_tokenizer(tmp_path / "s", told=False)
    assert "give --heads" in faults(tmp_path / "s")
    assert faults(tmp_path / "s", Heads(2, 2, 2)) == ""


def test_tensors_of_something_else_are_no_tokenizer(tmp_path):
    lavit.write_tokenizer(tmp_path / "s")
    torch.save({"cls_token": torch.ones(1)}, tmp_path / "s" / lavit.EVA)
    assert "do not tell depth, encoder_hidden, patch, grid" in faults(tmp_path / "s")
