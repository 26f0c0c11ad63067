"""The tokenizer as users hold it: same ids whatever the batch, back to features, strict loading."""

import numpy as np
import pytest
import torch
from PIL import Image

from pictish.data.model_folder import read_model_folder, write_model_folder
from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
from pictish.tokenizer.network import DynamicTokenizer
from tests.tokenizer.conftest import tiny_config, tiny_network


def run(tokenizer, pixels, **keywords):
    return tokenizer.tokenize_pixels(pixels, [(8, 8)] * len(pixels), **keywords)


def test_lengths_vary_and_cells_rise(tokenizer, pixels):
    tokens = run(tokenizer, pixels)
    assert len({len(token.ids) for token in tokens}) > 2
    for token in tokens:
        assert (np.diff(token.cells) > 0).all()
        assert len(token.ids) == len(token.cells)
        assert token.ids.max() < tokenizer.codebook_size
        assert token.size == (8, 8)
        assert token.grid == (4, 4)


@pytest.mark.parametrize("keywords", [{}, {"budget": 5}, {"threshold": 0.9}])
def test_ids_do_not_depend_on_the_batch(tokenizer, pixels, keywords):
    together = run(tokenizer, pixels, **keywords)
    alone = [run(tokenizer, pixels[i : i + 1], **keywords)[0] for i in range(len(pixels))]
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    shuffled = run(tokenizer, pixels[order], **keywords)
    assert together == alone
    assert [together[i] for i in order] == shuffled


def test_hidden_rows_are_bit_equal_at_every_place_of_a_group(tokenizer, pixels):
    """Ids could agree by luck; the numbers they come from must be the same bits."""
    size = tokenizer.micro_batch
    expected = tokenizer._encode(pixels[:1])[0][0]
    for place in range(size):
        group = torch.cat([pixels[1 : 1 + place], pixels[:1], pixels[5 : 5 + size - 1 - place]])
        assert torch.equal(tokenizer._encode(group)[0][place], expected)


def test_a_draw_belongs_to_its_generator(tokenizer, pixels):
    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    first = run(tokenizer, pixels[:3], generators=generators([1, 2, 3]))
    again = run(tokenizer, pixels[[2, 0]], generators=generators([3, 1]))
    assert [first[2], first[0]] == again


def test_pil_arrays_and_pixels_agree(tokenizer, pixels):
    arrays = [picture.numpy() for picture in pixels[:3]]
    side = tokenizer.image_size
    from_pil = tokenizer.tokenize([Image.fromarray(array) for array in arrays])
    assert from_pil == tokenizer.tokenize(arrays)
    assert from_pil == tokenizer.tokenize_pixels(pixels[:3], [(side, side)] * 3)
    assert tokenizer.tokenize([]) == []


def test_reconstruction_depends_on_ids_alone(tokenizer, pixels):
    tokens = run(tokenizer, pixels)
    features = tokenizer.reconstruct(tokens)
    assert features.shape == tokenizer.features(pixels).shape == (11, 16, tokenizer.network.encoder.features)
    assert torch.isfinite(features).all()
    for place, token in enumerate(tokens):
        assert torch.equal(tokenizer.reconstruct([token])[0], features[place])
        moved = type(token)(
            ids=token.ids,
            cells=None,
            grid=token.grid,
            size=(1, 2),
            tokenizer=token.tokenizer,
            codebook_size=token.codebook_size,
        )
        assert torch.equal(tokenizer.reconstruct([moved])[0], features[place])
    assert not torch.equal(features[0], features[1])


def test_inference_and_dense_training_path_agree(tokenizer, pixels):
    network = tokenizer.network
    there = network.round_trip(network.encoder.raw(pixels))
    tokens = run(tokenizer, pixels)
    assert torch.equal(torch.from_numpy(np.concatenate([token.ids for token in tokens])), there.ids)
    assert torch.allclose(tokenizer.reconstruct(tokens), there.predicted, atol=1e-4)


def test_foreign_tokens_are_refused(tokenizer, pixels):
    other = Tokenizer(tiny_network(), "ffffffffffff")
    with pytest.raises(ValueError, match="0123456789ab cannot be decoded by tokenizer ffffffffffff"):
        other.reconstruct(run(tokenizer, pixels[:1]))


def test_saved_and_loaded_again(tmp_path, pixels):
    save_tokenizer(tmp_path / "model", tiny_network(), half=False)
    loaded = Tokenizer.from_folder(tmp_path / "model")
    expected = [token.ids.tolist() for token in run(Tokenizer(tiny_network(), "0" * 12), pixels)]
    assert [token.ids.tolist() for token in run(loaded, pixels)] == expected
    assert loaded.fingerprint == read_model_folder(tmp_path / "model").fingerprint
    save_tokenizer(tmp_path / "half", tiny_network())
    names = read_model_folder(tmp_path / "half").tensors
    assert names["project_in.weight"].dtype == torch.float16
    assert names["quantizer.vq._codebook.embed"].dtype == torch.float32
    run(Tokenizer.from_folder(tmp_path / "half"), pixels)


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "encoder", "part"])
def test_a_folder_that_does_not_fit_is_refused(tmp_path, damage):
    save_tokenizer(tmp_path / "good", tiny_network())
    stored = read_model_folder(tmp_path / "good")
    tensors, config = dict(stored.tensors), dict(stored.config)
    expected = {"missing": "1 missing", "unknown": "1 unknown", "shape": "1 of another shape"}.get(damage)
    if damage == "missing":
        del tensors["position"]
    elif damage == "unknown":
        tensors["stranger"] = torch.zeros(1)
    elif damage == "shape":
        tensors["position"] = torch.zeros(1, 2)
    elif damage == "encoder":
        config["encoder_sha256"], expected = "0" * 64, "trained on encoder weights 000000000000"
    else:
        config["part"], expected = "decoder", "holds part 'decoder'"
    write_model_folder(tmp_path / "bad", config, tensors)
    with pytest.raises(ValueError, match=expected) as caught:
        Tokenizer.from_folder(tmp_path / "bad")
    assert "\n" not in str(caught.value)


def test_a_full_size_vit_has_the_shape_of_the_base_config():
    """The full width would take minutes; the same shape with two layers and a small ViT takes seconds."""
    from pictish.configs import load, parse
    from pictish.tokenizer.config import TokenizerConfig

    raw = load(
        "base/tokenizer",
        [
            "model.encoder.model=vit_tiny_patch16_224",
            "model.encoder.weights={kind: random}",
            "model.encoder.image_size=256",
            "model.encoder.levels=[11]",
            "model.width=64",
            "model.heads=4",
            "model.merger.layers=2",
            "model.reconstructor.layers=2",
            "model.encoder.micro_batch=2",
            "model.quantizer.codes=512",
        ],
    )
    network = DynamicTokenizer(parse(TokenizerConfig, raw["model"], "test"))
    tokenizer = Tokenizer(network, "0" * 12)
    pixels = torch.randint(0, 256, (2, 256, 256, 3), dtype=torch.uint8)
    network.quantizer.start(torch.randn(600, 32))
    tokens = run(tokenizer, pixels, budget=90)
    assert [len(token.ids) for token in tokens] == [90, 90]
    assert tokens[0].grid == (16, 16)
    assert tokenizer.reconstruct(tokens).shape == (2, 256, 192)


def test_config_mistakes_are_named():
    base = tiny_config().model_dump()
    with pytest.raises(ValueError, match="level_weights has 1 entries for 2 levels"):
        tiny_config(encoder={**base["encoder"], "level_weights": [1.0]})
    with pytest.raises(ValueError, match="not a multiple of heads"):
        tiny_config(heads=5)
    with pytest.raises(ValueError, match="timm knows no 'tf_efficientnet_lite9'"):
        tiny_network(encoder={**base["encoder"], "model": "tf_efficientnet_lite9"})


def test_a_code_is_held_to_its_own_patch():
    """`alone` sees one code at a time and its own cell: other cells' features change nothing for it."""
    network = tiny_network(alone=1.0)
    raw = torch.randn(4, 16, network.encoder.features, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    network.alone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    losses = network(raw, torch.Generator().manual_seed(1), quantize=True)
    assert seen[0].shape == (len(losses.ids), network.quantizer.dim)
    codes = network.quantizer.decode(losses.ids)  # they have moved by one EMA step since
    assert torch.allclose(seen[0], codes, atol=0.01)
    lighter = tiny_network(alone=0.25)(raw, torch.Generator().manual_seed(1), quantize=True)
    assert losses.total.item() == pytest.approx((lighter.total + 0.75 * losses.alone).item(), abs=1e-5)
    without = tiny_network(alone=0.0)
    assert without(raw, torch.Generator().manual_seed(1), quantize=True).alone == 0
    assert not any(name.startswith("alone") for name in without.state_dict())
