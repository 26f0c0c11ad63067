"""The preview head: starts from the reconstructor's pixels, learns, decodes the same for any batch."""

import json

import pytest
import torch

from pictish.configs import load, parse
from pictish.decoder.config import PreviewConfig, TrainConfig
from pictish.decoder.preview import Preview, build_preview, save_preview
from pictish.decoder.train import train
from pictish.tokenizer.dynamic import Tokenizer
from tests.shards import drawn_picture, write_shard
from tests.tokenizer.conftest import ORDERED, tiny_network

SETTINGS = PreviewConfig(width=16, blocks=1, smallest=8)


def test_an_untrained_head_gives_the_reconstructors_pixels(tokenizer, tokens):
    preview = Preview(build_preview(SETTINGS, tokenizer), tokenizer)
    expected = tokenizer.pixels_in(tokenizer.reconstruct(tokens))
    picture = preview.decode(tokens).permute(0, 3, 1, 2) / 255
    assert picture.shape == (7, 3, 16, 16)
    assert torch.allclose(picture, expected.clamp(0, 1), atol=0.5 / 255 + 1e-6)


def test_a_picture_does_not_depend_on_its_batch(tokenizer, tokens):
    torch.manual_seed(0)
    head = build_preview(SETTINGS, tokenizer)
    torch.nn.init.normal_(head.leave[0].weight, std=0.1)
    preview = Preview(head, tokenizer)
    together = preview.decode(tokens)
    assert together.dtype == torch.uint8
    for place, token in enumerate(tokens):
        assert torch.equal(preview.decode([token])[0], together[place])
    assert preview.decode([]).shape == (0, 16, 16, 3)


def test_training_lowers_the_error_and_resumes_bit_for_bit(folder, tmp_path):
    write_shard(tmp_path / "train.tar", 24)
    write_shard(tmp_path / "validation.tar", 8, first=1000)
    changes = [
        f"tokenizer={folder / 'tokenizer'}",
        f"data.train=[{tmp_path / 'train.tar'}]",
        f"data.validation=[{tmp_path / 'validation.tar'}]",
        "checkpoint_every=15",
    ]
    config = parse(TrainConfig, load("tiny/preview", changes), "test")
    train(config, tmp_path / "whole", "cpu")

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 20:
            raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path / "parts", "cpu", kill)
    train(config, tmp_path / "parts", "cpu")

    def rows(run: str) -> list[dict]:
        found = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k != "pictures_per_second"} for row in found]

    assert rows("whole") == rows("parts")
    errors = [row["loss"] for row in rows("whole") if "loss" in row]
    assert errors[-1] < 0.8 * errors[0]
    assert rows("whole")[-1]["validation_psnr"] > rows("whole")[-1]["validation_psnr_headless"]
    loaded = Preview.from_folder(tmp_path / "parts" / "model", Tokenizer.from_folder(folder))
    picture = loaded.decode(loaded.tokenizer.tokenize([drawn_picture(5).convert("RGB")]))[0]
    assert picture.float().std() > 5


def test_a_preview_of_another_tokenizer_is_refused(folder, tokenizer, tmp_path):
    save_preview(tmp_path / "decoder", build_preview(SETTINGS, tokenizer), SETTINGS, "ffffffffffff")
    with pytest.raises(ValueError, match="decodes tokens of ffffffffffff, not of"):
        Preview.from_folder(tmp_path, tokenizer)


def test_a_tokenizer_of_pixels_needs_no_head(folder, tokenizer, tokens):
    preview = Preview.from_folder(folder, tokenizer)
    assert preview.head is None
    pixels = tokenizer.pixels_in(tokenizer.reconstruct(tokens)).clamp(0, 1) * 255
    assert torch.equal(preview.decode(tokens).permute(0, 3, 1, 2), pixels.round().to(torch.uint8))


def test_of_codes_in_order_a_preview_is_asked_for(ordered, tmp_path):
    with pytest.raises(ValueError, match="a preview decoder was asked for, and it holds none"):
        Preview.from_folder(tmp_path, ordered)
    tokens = ordered.tokenize([drawn_picture(5).convert("RGB")])
    untrained = Preview(build_preview(SETTINGS, ordered), ordered)
    assert untrained.decode(tokens).shape == (1, 16, 16, 3)


def test_a_tokenizer_without_pixels_has_no_preview():
    network = tiny_network(**{**ORDERED, "encoder": {**ORDERED["encoder"], "pixels": 0}})
    with pytest.raises(ValueError, match="preview: the tokenizer's features hold no pixels"):
        build_preview(SETTINGS, Tokenizer(network, "0" * 12))
