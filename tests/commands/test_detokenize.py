import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictish.cli import main
from pictish.data.shards import ShardFile, read_shard
from pictish.data.token_folder import find_tokens, read_manifest, read_tokens
from pictish.data.tokens import TokenizedImage
from pictish.decoder.preview import Preview
from pictish.decoder.upscaler import save_upscaler
from pictish.io.model_folder import fingerprint
from pictish.pipelines.reconstruct import Reconstructor, shape_of
from pictish.tokenizer.dynamic import Tokenizer
from tests.conftest import save_tiny_models
from tests.decoder.tiny import tiny_upscaler

NAMES = ["a.v2", "sub dir/ü 名", "wide", "z"]
SIZES = [(30, 40), (500, 20), (3, 400), (64, 64)]  # height, width


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="session")
def images(tiny_models):
    """A few images' tokens, by name."""
    tokenizer = Tokenizer.from_folder(tiny_models)
    chance = np.random.default_rng(0)
    pictures = [chance.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    return dict(zip(NAMES, tokenizer.tokenize(pictures), strict=True))


@pytest.fixture
def folder(tmp_path, images):
    """A token folder without a manifest."""
    for name, image in images.items():
        path = tmp_path / "tokens" / f"{name}.tokens"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.to_bytes())
    return tmp_path / "tokens"


@pytest.fixture
def detokenize(tiny_models, capsys):
    """Run the command; its exit code. What it printed is in `detokenize.out` and `detokenize.err`."""

    def run(*words, model=tiny_models):
        code = main(["detokenize", *map(str, words), "--model", str(model)])
        run.out, run.err = capsys.readouterr()
        return code

    return run


@pytest.fixture
def seen(monkeypatch):
    """The numbers of images given to the model, call by call."""
    calls = []
    original = Preview.decode

    def counted(self, tokens):
        calls.append(len(tokens))
        return original(self, tokens)

    monkeypatch.setattr(Preview, "decode", counted)
    return calls


def test_the_pipeline_gives_pictures_in_the_shape_of_the_originals(images, tiny_models):
    reconstructor = Reconstructor.from_folder(tiny_models)
    pictures = reconstructor(list(images.values()))
    assert [picture.size for picture in pictures] == [(256, 192), (10, 256), (256, 2), (256, 256)]
    assert all(picture.mode == "RGB" for picture in pictures)
    square = reconstructor.preview.decode([images["z"]])[0].numpy()
    assert square.std() > 5  # the random weights show something
    (small,) = reconstructor([images["z"]], size=64)
    assert np.array_equal(np.asarray(small), square)
    assert reconstructor([]) == []


def test_shapes_keep_the_ratio_and_at_least_a_pixel():
    def token(height, width):
        return TokenizedImage([1], None, (8, 8), (height, width), "0" * 12, 64)

    assert shape_of(token(300, 400), 256) == (256, 192)
    assert shape_of(token(400, 300), 512) == (384, 512)
    assert shape_of(token(1, 60_000), 256) == (256, 1)
    assert shape_of(token(7, 7), 1) == (1, 1)


def test_the_pipeline_refuses_tokens_of_another_tokenizer(tiny_models):
    stranger = TokenizedImage([1], [0], (8, 8), (10, 10), "f" * 12, 64)
    with pytest.raises(ValueError, match="ffffffffffff"):
        Reconstructor.from_folder(tiny_models)([stranger])


def test_tokens_become_pictures_of_the_same_names(tmp_path, folder, detokenize, images, tiny_models):
    assert detokenize(folder, tmp_path / "out") == 0
    assert sorted(content(tmp_path / "out")) == sorted(["manifest.json", *(f"{name}.png" for name in NAMES)])
    expected = Reconstructor.from_folder(tiny_models)(list(images.values()))
    for name, picture in zip(NAMES, expected, strict=True):
        with Image.open(tmp_path / "out" / f"{name}.png") as written:
            assert np.array_equal(np.asarray(written), np.asarray(picture))
    assert detokenize.out.startswith("4 images reconstructed in ")
    assert detokenize.err == ""


def test_batches_and_order_do_not_matter(tmp_path, folder, detokenize):
    detokenize(folder, tmp_path / "out")
    assert detokenize(folder, tmp_path / "one", "--batch-size", "1") == 0
    assert content(tmp_path / "one") == content(tmp_path / "out")
    parts = [folder / "z.tokens", folder / "wide.tokens", folder / "a.v2.tokens"]
    assert detokenize(*parts, tmp_path / "files") == 0
    found = content(tmp_path / "files")
    assert len(found) == 4
    assert all(
        content(tmp_path / "out")[name] == blob for name, blob in found.items() if name.endswith(".png")
    )


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_kinds_and_sizes(tmp_path, folder, detokenize, suffix, kind):
    assert detokenize(folder, tmp_path / "out", "--format", suffix, "--size", "100", "--quiet") == 0
    assert detokenize.out == detokenize.err == ""
    with Image.open(tmp_path / "out" / f"a.v2.{suffix}") as picture:
        assert (picture.format, picture.size) == (kind, (100, 75))


def test_shards_become_pictures_too(tmp_path, folder, detokenize, images):
    with ShardFile(tmp_path / "shards" / "b.tar") as shard:
        shard.write("a%2Ev2", {"tokens": images["a.v2"].to_bytes(), "txt": b"words"})
        shard.write("sub dir/ü 名", {"tokens": images["sub dir/ü 名"].to_bytes()})
    with ShardFile(tmp_path / "shards" / "a.tar") as shard:
        shard.write("wide", {"tokens": images["wide"].to_bytes()})
        shard.write("z", {"tokens": images["z"].to_bytes()})
    assert detokenize(tmp_path / "shards", tmp_path / "out") == 0
    detokenize(folder, tmp_path / "expected")
    pictures, expected = content(tmp_path / "out"), content(tmp_path / "expected")
    assert {name: blob for name, blob in pictures.items() if name != "manifest.json"} == {
        name: blob for name, blob in expected.items() if name != "manifest.json"
    }


def test_what_tokenize_writes_can_be_read(tmp_path, detokenize, tiny_models):
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.new("RGB", (20 + number, 10), (80 * number, 0, 0)).save(tmp_path / "in" / f"x.{number}.png")
    for words in ([], ["--format", "shards"]):
        command = ["tokenize", str(tmp_path / "in"), str(tmp_path / "t"), "--model", str(tiny_models), *words]
        assert main(command) == 0
        assert detokenize(tmp_path / "t", tmp_path / "out") == 0
        assert sorted(content(tmp_path / "out")) == ["manifest.json", "x.0.png", "x.1.png", "x.2.png"]
        shutil.rmtree(tmp_path / "t")
    assert "3 already done" in detokenize.out or "3 images reconstructed" in detokenize.out


def test_finished_pictures_are_not_made_again(tmp_path, folder, detokenize, seen):
    (folder / "wide.tokens").rename(tmp_path / "wide.tokens")
    detokenize(folder, tmp_path / "out")
    assert sum(seen) == 3
    shutil.move(tmp_path / "wide.tokens", folder / "wide.tokens")
    assert detokenize(folder, tmp_path / "out") == 0
    assert sum(seen) == 4
    assert "3 already done" in detokenize.out
    detokenize(folder, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_nothing_is_overwritten_without_being_asked(tmp_path, folder, detokenize, images):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "z.png").write_bytes(b"mine")
    assert detokenize(folder, tmp_path / "out") == 1
    assert "z.png exists already and differs" in detokenize.err
    assert (tmp_path / "out" / "z.png").read_bytes() == b"mine"
    assert detokenize(folder, tmp_path / "out", "--size", "64") == 2
    assert "was written with size 256, this run has 64" in detokenize.err
    assert detokenize(folder, tmp_path / "out", "--size", "64", "--overwrite") == 0
    detokenize(folder, tmp_path / "fresh", "--size", "64")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    (folder / "a.v2.tokens").write_bytes(images["z"].to_bytes())
    assert detokenize(folder, tmp_path / "out", "--size", "64") == 1
    assert "a.v2.png exists already and differs" in detokenize.err


def flip(path, position=-1):
    blob = bytearray(path.read_bytes())
    blob[position] ^= 1
    path.write_bytes(blob)


def test_damaged_tokens_are_named_and_counted_and_the_rest_is_done(tmp_path, folder, detokenize):
    detokenize(folder, tmp_path / "clean")
    for name in ("cut", "empty", "flipped", "future", "gone"):
        shutil.copy(folder / "z.tokens", folder / f"{name}.tokens")
    flip(folder / "flipped.tokens")
    (folder / "cut.tokens").write_bytes((folder / "z.tokens").read_bytes()[:-2])
    (folder / "empty.tokens").write_bytes(b"")
    newer = (folder / "z.tokens").read_bytes().replace(b'\\"format\\":2', b'\\"format\\":3')
    (folder / "future.tokens").write_bytes(newer)
    (folder / "gone.tokens").unlink()
    (folder / "gone.tokens").symlink_to(folder / "nothing")
    for _ in range(2):
        assert detokenize(folder, tmp_path / "out") == 1
        complaints = {
            "cut.tokens": "token file",
            "empty.tokens": "token file",
            "flipped.tokens": "do not match its checksum",
            "future.tokens": "format version 3; this program reads version 2",
            "gone.tokens": "No such file",
        }
        lines = detokenize.err.splitlines()
        assert len(lines) == 5
        for name, complaint in complaints.items():
            assert any(name in line and complaint in line for line in lines), (name, lines)
        assert "5 failed" in detokenize.out
    assert content(tmp_path / "out") == content(tmp_path / "clean")


def test_a_file_the_manifest_lists_and_that_is_gone_is_named(tmp_path, detokenize, tiny_models):
    (tmp_path / "in").mkdir()
    for number in range(2):
        Image.new("RGB", (20, 10), (80 * number, 0, 0)).save(tmp_path / "in" / f"{number}.png")
    main(["tokenize", str(tmp_path / "in"), str(tmp_path / "t"), "--model", str(tiny_models)])
    (tmp_path / "t" / "0.tokens").unlink()
    assert detokenize(tmp_path / "t", tmp_path / "out") == 1
    assert "0.tokens: No such file" in detokenize.err
    assert (tmp_path / "out" / "1.png").exists()


def test_damaged_shards_are_named_and_what_came_before_is_done(tmp_path, detokenize, images):
    blob = images["z"].to_bytes()
    for name in ("a.tar", "b.tar"):
        with ShardFile(tmp_path / "t" / name) as shard:
            shard.write(f"{name[0]}1", {"tokens": blob})
            shard.write(f"{name[0]}2", {"tokens": blob[:-1]})
            shard.write(f"{name[0]}3", {"txt": b"words only"})
            shard.write(f"{name[0]}4", {"tokens": blob})
    whole = (tmp_path / "t" / "a.tar").read_bytes()
    (tmp_path / "t" / "a.tar").write_bytes(whole[:4000])
    assert detokenize(tmp_path / "t", tmp_path / "out") == 1
    lines = detokenize.err.splitlines()
    assert any("a.tar: " in line and "a.tar/" not in line for line in lines), lines
    assert any("b.tar/b2: " in line and "token file" in line for line in lines)
    assert any("b.tar/b3: holds no tokens" in line for line in lines)
    made = sorted(content(tmp_path / "out"))
    assert {"b1.png", "b4.png", "a1.png"} <= set(made)
    assert not {"b2.png", "b3.png", "a4.png"} & set(made)


def test_strict_stops_at_the_first(tmp_path, folder, detokenize):
    for name in NAMES:
        flip(folder / f"{name}.tokens", 200)
    assert detokenize(folder, tmp_path / "out", "--strict") == 1
    assert len(detokenize.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("as_shards", [False, True])
def test_tokens_of_another_tokenizer_are_refused_on_one_line(tmp_path, folder, detokenize, images, as_shards):
    save_tiny_models(tmp_path / "other", seed=1)
    source = folder
    if as_shards:
        source = tmp_path / "shards"
        with ShardFile(source / "a.tar") as shard:
            shard.write("damaged", {"tokens": b"x"})
            shard.write("z", {"tokens": images["z"].to_bytes()})
        assert len(list(read_shard(source / "a.tar"))) == 2
    assert detokenize(source, tmp_path / "out", model=tmp_path / "other") == 2
    theirs = read_tokens(find_tokens([folder])[0].path).tokenizer
    assert len(detokenize.err.splitlines()) == 1
    assert f"written by tokenizer {theirs}" in detokenize.err
    assert not (tmp_path / "out").exists()


def test_a_decoder_of_another_tokenizer_is_refused_on_one_line(tmp_path, folder, detokenize, tiny_models):
    save_tiny_models(tmp_path / "other", seed=1)
    shutil.copytree(tiny_models / "tokenizer", tmp_path / "mixed" / "tokenizer")
    shutil.copytree(tmp_path / "other" / "decoder", tmp_path / "mixed" / "decoder")
    assert detokenize(folder, tmp_path / "out", model=tmp_path / "mixed") == 2
    assert "decodes tokens of " in detokenize.err
    assert not (tmp_path / "out").exists()


def test_without_a_decoder_the_tokenizer_reconstructs_the_picture(tmp_path, folder, detokenize, tiny_models):
    shutil.copytree(tiny_models / "tokenizer", tmp_path / "alone" / "tokenizer")
    assert detokenize(folder, tmp_path / "out", model=tmp_path / "alone") == 0
    config = tmp_path / "alone" / "tokenizer" / "config.yaml"
    config.write_text(config.read_text().replace("kind: grid", "kind: sequence"))
    assert detokenize(folder, tmp_path / "other", model=tmp_path / "alone") == 2
    assert "no decoder found" in detokenize.err


def test_two_tokens_that_map_to_one_picture_are_named(tmp_path, folder, detokenize, images):
    with ShardFile(tmp_path / "a.tar") as shard:
        shard.write("z", {"tokens": images["z"].to_bytes()})
    assert detokenize(folder, tmp_path / "a.tar", tmp_path / "out") == 1
    assert "z.tokens" in detokenize.err
    assert "a.tar: would both be written to z.png" in detokenize.err
    made = {path.stem for path in (tmp_path / "out").rglob("*.png")}
    assert made == {Path(f"{name}.png").stem for name in images} - {"z"}
    assert detokenize(tmp_path / "a.tar", folder / "z.tokens", tmp_path / "none") == 2
    assert not (tmp_path / "none").exists()


def test_inputs_that_hold_no_tokens_are_one_line(tmp_path, detokenize):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    for name, complaint in (
        ("empty", "no token files"),
        ("gone", "no such file"),
        ("a.png", "not a token file"),
    ):
        assert detokenize(tmp_path / name, tmp_path / "out") == 2
        assert complaint in detokenize.err
        assert len(detokenize.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_what_the_pictures_were_made_of(tmp_path, folder, detokenize, images):
    detokenize(folder, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.header.kind == "pictures"
    assert set(manifest.header.settings) == {"decoder", "format", "size"}
    assert manifest.files["z.png"].source == "z.tokens"
    assert manifest.files["z.png"].tokens == len(images["z"])
    assert str(tmp_path) not in json.dumps(json.loads((tmp_path / "out" / "manifest.json").read_text()))


def test_upscaled_pictures_are_larger_and_the_manifest_says_so(tmp_path, folder, detokenize, tiny_models):
    model = Path(shutil.copytree(tiny_models, tmp_path / "model"))
    network = tiny_upscaler()
    save_upscaler(model / "upscaler", network.config, network.state_dict())
    assert detokenize(folder, tmp_path / "out", model=model) == 0
    settings = read_manifest(tmp_path / "out").header.settings
    assert (settings["size"], settings["upscale"]) == (256, 4)  # the preview draws 64
    assert settings["upscaler"] == fingerprint(model / "upscaler")
    assert detokenize(folder, tmp_path / "out", "--upscale", "2", model=model) == 2
    assert "it was written with size 256, this run has 128" in detokenize.err
    assert detokenize(folder, tmp_path / "out", "--upscale", "2", "--size", "256", model=model) == 2
    assert "it was written with upscale 4, this run has 2" in detokenize.err
    assert detokenize(folder, tmp_path / "half", "--upscale", "2", "--batch-size", "1", model=model) == 0
    with Image.open(tmp_path / "half" / "a.v2.png") as picture:
        assert picture.size == (128, 96)
    one = [folder / "z.tokens", tmp_path / "one", "--batch-size", "1"]
    assert detokenize(*one, model=model) == 0
    assert (tmp_path / "one" / "z.png").read_bytes() == (tmp_path / "out" / "z.png").read_bytes()


def test_a_folder_from_before_upscalers_is_continued_with_upscale_off(
    tmp_path, folder, detokenize, tiny_models
):
    (folder / "wide.tokens").rename(tmp_path / "wide.tokens")
    detokenize(folder, tmp_path / "out")
    shutil.move(tmp_path / "wide.tokens", folder / "wide.tokens")
    model = Path(shutil.copytree(tiny_models, tmp_path / "model"))
    network = tiny_upscaler()
    save_upscaler(model / "upscaler", network.config, network.state_dict())
    assert detokenize(folder, tmp_path / "out", model=model) == 2
    assert "it was written with upscale none, this run has 4" in detokenize.err
    assert detokenize(folder, tmp_path / "out", "--upscale", "1", model=model) == 0
    assert "3 already done" in detokenize.out
    detokenize(folder, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_upscaling_without_an_upscaler_is_refused_on_one_line(tmp_path, folder, detokenize):
    assert detokenize(folder, tmp_path / "out", "--upscale", "4") == 2
    assert detokenize.err == "pictish: upscale: 4 asked for; this model has no upscaler, so only 1 fits\n"
    assert not (tmp_path / "out").exists()
