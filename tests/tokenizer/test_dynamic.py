"""The tokenizer as users hold it: same ids whatever the batch, back to features, strict loading."""

import copy
import dataclasses

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pictish.data.tokens import TokenizedImage
from pictish.io.model_folder import read_model_folder, write_model_folder
from pictish.tokenizer.dynamic import Tokenizer, save_tokenizer
from pictish.tokenizer.network import DynamicTokenizer
from tests.tokenizer.conftest import ORDERED, random_pixels, tiny_config, tiny_network


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
    expected = tokenizer._encode(pixels[:1], tokenizer.network.selector)[0][0]
    for place in range(size):
        group = torch.cat([pixels[1 : 1 + place], pixels[:1], pixels[5 : 5 + size - 1 - place]])
        assert torch.equal(tokenizer._encode(group, tokenizer.network.selector)[0][place], expected)


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


def with_cells(token: TokenizedImage, cells: np.ndarray | None, **changes) -> TokenizedImage:
    return dataclasses.replace(token, cells=cells, **changes)


def test_codes_are_decoded_at_their_cells(tokenizer, pixels):
    """The same codes elsewhere are another image; which other images are in the batch does not matter."""
    tokens = run(tokenizer, pixels)
    features = tokenizer.reconstruct(tokens)
    assert features.shape == (11, 16, tokenizer.network.features)
    assert torch.isfinite(features).all()
    for place, token in enumerate(tokens):
        assert torch.equal(tokenizer.reconstruct([token])[0], features[place])
        assert torch.equal(
            tokenizer.reconstruct([with_cells(token, token.cells, size=(1, 2))])[0], features[place]
        )
    short = next(token for token in tokens if len(token) < 16)
    free = next(cell for cell in range(16) if cell not in short.cells)
    moved = np.sort([free, *short.cells[1:]])
    assert not torch.allclose(*tokenizer.reconstruct([short, with_cells(short, moved)]), atol=1e-3)


def test_codes_lie_at_their_cells_and_nothing_lies_on_dropped_ones(tokenizer, pixels):
    tokens = run(tokenizer, pixels)
    vectors, real = tokenizer.code_vectors(tokens)
    for token, row, kept in zip(tokens, vectors, real, strict=True):
        assert kept.nonzero().flatten().tolist() == token.cells.tolist()
        assert torch.equal(row[kept], tokenizer.network.quantizer.decode(torch.tensor(token.ids)))
    # what stands on a dropped cell is not read
    network = tokenizer.network
    noise = torch.where(real[..., None], vectors, torch.randn(vectors.shape))
    assert torch.equal(network.decode(noise, real), network.decode(vectors, real))
    assert not torch.equal(network.decode(vectors, real | True), network.decode(vectors, real))


def test_features_hold_the_reconstructed_picture(tokenizer, pixels):
    tokens = run(tokenizer, pixels)
    vectors, real = tokenizer.code_vectors(tokens)
    _, pictures = tokenizer.network.reconstructor(vectors, real)
    found = tokenizer.pixels_in(tokenizer.reconstruct(tokens))
    assert found.shape == (11, 3, 16, 16)
    assert torch.allclose(found, pictures, atol=1e-5)


def test_of_codes_in_order_the_cells_are_not_read(ordered, pixels):
    tokens = run(ordered, pixels)
    features = ordered.reconstruct(tokens)
    assert features.shape == (11, 16, ordered.network.encoder.features)
    for place, token in enumerate(tokens):
        assert torch.equal(ordered.reconstruct([with_cells(token, None)])[0], features[place])
    assert not torch.equal(features[0], features[1])
    assert ordered.pixels_in(features).shape == (11, 3, 16, 16)


@pytest.mark.parametrize("name", ["tokenizer", "ordered"])
def test_inference_and_dense_training_path_agree(name, pixels, request):
    tokenizer = request.getfixturevalue(name)
    there = tokenizer.network.round_trip(pixels)
    tokens = run(tokenizer, pixels)
    assert torch.equal(torch.from_numpy(np.concatenate([token.ids for token in tokens])), there.ids)
    assert [len(token) for token in tokens] == there.keep.sum(dim=1).tolist()
    assert torch.allclose(tokenizer.reconstruct(tokens), there.features, atol=1e-4)


def test_tokens_without_cells_or_of_another_grid_are_refused(tokenizer, pixels):
    (token,) = run(tokenizer, pixels[:1], budget=4)
    with pytest.raises(ValueError, match="decodes codes at their cells; these tokens have no cells"):
        tokenizer.reconstruct([with_cells(token, None)])
    with pytest.raises(ValueError, match="these tokens have those of a grid of 8 x 2"):
        tokenizer.reconstruct([with_cells(token, token.cells, grid=(8, 2))])


def test_quality_keeps_as_few_codes_as_are_expected_to_reach_it(tokenizer, pixels):
    with torch.no_grad():
        expected = tokenizer.network.selector.predicted_psnr(tokenizer.network.embed(pixels))  # (B, N)
    wanted = float(expected[:, 5].median())
    tokens = run(tokenizer, pixels, quality=wanted)
    assert len({len(token) for token in tokens}) > 1
    for token, each in zip(tokens, expected, strict=True):
        enough = (each >= wanted).nonzero().flatten()
        assert len(token) == (int(enough[0]) + 1 if len(enough) else 16)
    more = run(tokenizer, pixels, quality=wanted + 2)
    assert all(len(a) <= len(b) for a, b in zip(tokens, more, strict=True))
    assert sum(map(len, more)) > sum(map(len, tokens))
    assert [len(token) for token in run(tokenizer, pixels, quality=0.1)] == [1] * 11
    assert tokens == [run(tokenizer, pixels[i : i + 1], quality=wanted)[0] for i in range(11)]


@pytest.mark.parametrize("quality", [0.0, 100.0, -3.0, float("nan")])
def test_a_quality_out_of_range_is_refused(tokenizer, pixels, quality):
    with pytest.raises(ValueError, match="decibels between 0 and 100 fit"):
        run(tokenizer, pixels[:1], quality=quality)


def test_quality_needs_a_tokenizer_that_predicts_its_errors(ordered, pixels):
    with pytest.raises(ValueError, match="quality: this tokenizer does not predict its errors"):
        run(ordered, pixels[:1], quality=20.0)


def test_foreign_tokens_are_refused(tokenizer, pixels):
    other = Tokenizer(tiny_network(), "ffffffffffff")
    with pytest.raises(ValueError, match="0123456789ab cannot be decoded by tokenizer ffffffffffff"):
        other.reconstruct(run(tokenizer, pixels[:1]))


def test_saved_and_loaded_again(tmp_path, pixels):
    network = tiny_network()
    network.selector.calibration.copy_(torch.tensor([0.7, 4.0, 0.5, -0.1]))
    save_tokenizer(tmp_path / "model", network, half=False)
    loaded = Tokenizer.from_folder(tmp_path / "model")
    assert run(loaded, pixels) == run(Tokenizer(network, loaded.fingerprint), pixels)
    assert loaded.network.selector.calibration.tolist() == pytest.approx([0.7, 4.0, 0.5, -0.1])
    assert loaded.fingerprint == read_model_folder(tmp_path / "model").fingerprint
    stored = read_model_folder(tmp_path / "model")
    earlier = stored.tensors | {"selector.calibration": torch.tensor([0.7, 4.0])}
    write_model_folder(tmp_path / "earlier", stored.config, earlier)
    again = Tokenizer.from_folder(tmp_path / "earlier").network.selector
    assert again.calibration.tolist() == pytest.approx([0.7, 4.0, 0.0, 0.0])
    save_tokenizer(tmp_path / "half", network)
    tensors = read_model_folder(tmp_path / "half").tensors
    assert tensors["encoder.embed.weight"].dtype == torch.float16
    for name in ("quantizer.vq._codebook.embed", "selector.score.0.weight", "selector.level"):
        assert tensors[name].dtype == torch.float32, name
    run(Tokenizer.from_folder(tmp_path / "half"), pixels)


def test_what_only_training_needs_is_not_saved(tmp_path):
    torch.manual_seed(0)
    network = DynamicTokenizer(tiny_config(), teacher_features=7)
    save_tokenizer(tmp_path / "model", network)
    assert not any("teacher" in name for name in read_model_folder(tmp_path / "model").tensors)
    Tokenizer.from_folder(tmp_path / "model")


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "encoder", "part"])
def test_a_folder_that_does_not_fit_is_refused(tmp_path, damage):
    save_tokenizer(tmp_path / "good", tiny_network(**ORDERED))
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
            "model.reconstructor.blocks=2",
            "model.reconstructor.attention=1",
            "model.reconstructor.patch=2",
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
    assert tokenizer.reconstruct(tokens).shape == (2, 256, 64 + 3 * 2 * 2)


def test_config_mistakes_are_named():
    encoder = ORDERED["encoder"]
    mistakes = [
        (
            {**ORDERED, "encoder": {**encoder, "level_weights": [1.0]}},
            "level_weights has 1 entries for 2 levels",
        ),
        ({"heads": 5}, "not a multiple of heads"),
        (
            {"encoder": {"kind": "conv", "image_size": 30, "grid": 4}},
            "image_size 30 is not a multiple of grid 4",
        ),
        (
            {"reconstructor": {"kind": "grid", "blocks": 1, "attention": 2}},
            "attention 2 is more than blocks 1",
        ),
        ({"selector": {"kind": "score"}}, "kind grid and a selector of kind error go together"),
        ({"reconstructor": {"kind": "sequence"}}, "kind grid and a selector of kind error go together"),
        (
            {**ORDERED, "encoder": {"kind": "conv"}},
            "an encoder of kind conv needs a reconstructor of kind grid",
        ),
    ]
    for changes, said in mistakes:
        with pytest.raises(ValueError, match=said):
            tiny_config(**changes)
    with pytest.raises(ValueError, match="timm knows no 'tf_efficientnet_lite9'"):
        tiny_network(**{**ORDERED, "encoder": {**encoder, "model": "tf_efficientnet_lite9"}})


def test_any_frozen_encoder_can_stand_before_codes_at_their_cells(pixels):
    tokenizer = Tokenizer(tiny_network(encoder=ORDERED["encoder"]), "0" * 12)
    tokens = run(tokenizer, pixels, budget=5)
    assert tokenizer.places_codes
    assert tokenizer.pixels_in(tokenizer.reconstruct(tokens)).shape == (11, 3, 16, 16)


def test_an_encoder_from_a_file_lies_in_the_saved_folder(tmp_path):
    """So that the folder can be moved, and no path of the machine it was trained on is in it."""
    weights = {k: t.contiguous() for k, t in timm.create_model("test_efficientnet").state_dict().items()}
    save_file(weights, tmp_path / "encoder.safetensors")
    from_file = {"kind": "file", "path": str(tmp_path / "encoder.safetensors")}
    network = tiny_network(**{**ORDERED, "encoder": {**ORDERED["encoder"], "weights": from_file}}).eval()
    save_tokenizer(tmp_path / "model", network)
    (tmp_path / "encoder.safetensors").unlink()
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    assert str(tmp_path) not in (moved / "config.yaml").read_text()
    pixels = random_pixels(2, 32)
    loaded = Tokenizer.from_folder(moved)
    assert torch.equal(loaded.network.encoder.raw(pixels), network.encoder.raw(pixels))
    again = loaded.tokenize_pixels(pixels, [(32, 32)] * 2)
    assert all(len(token) for token in again)


def test_values_beyond_the_range_of_fp16_come_back(network, tmp_path):
    network = copy.deepcopy(network)
    name, parameter = next((n, p) for n, p in network.named_parameters() if n.startswith("merger."))
    with torch.no_grad():
        parameter.view(-1)[0] = 1e5
    save_tokenizer(tmp_path / "model", network)
    assert Tokenizer.from_folder(tmp_path / "model").network.state_dict()[name].view(-1)[0] == 1e5
