"""`pictish generate` and `pictish edit` on a tiny model of random weights: what they write, and `--like`."""

import base64
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pictish import cli
from pictish.data.images import png_bytes
from pictish.data.provenance import digest_of, png_with_origin, read_origin
from pictish.data.tokens import TokenizedImage
from pictish.decoder.upscaler import save_upscaler
from pictish.io.model_folder import fingerprint
from pictish.lm.captions import CAPTIONS, to_bytes
from pictish.lm.config import ImageGenerationConfig
from pictish.pipelines.drawing import generate
from pictish.pipelines.image_requests import even_grid
from pictish.pipelines.settings import GenerationConfig
from pictish.pipelines.text_to_image import TextToImage
from pictish.tokenizer.dynamic import Tokenizer
from tests.decoder.tiny import tiny_upscaler
from tests.shards import told_picture
from tests.tree import ROOT
from tests.whole import speaking_model

PROMPTS = ["a red apple", "two green pears on a table", "the sun", "a blue car"]


@pytest.fixture(scope="module")
def model(whole_model) -> Path:
    return whole_model


@pytest.fixture
def draw(model, tmp_path, capsys, monkeypatch):
    """Run `pictish generate` or `edit` with the model, writing to tmp_path/NAME; its exit code."""
    monkeypatch.delenv("PICTISH_TRACEBACK", raising=False)

    def run(name, *words, command="generate", model=model):
        small = [] if {"--like", "--size"} & set(words) else ["--size", "32"]
        options = ["--out", tmp_path / name, "--model", model, *small]
        code = cli.main([str(word) for word in (command, *words, *options)])
        run.out, run.err = capsys.readouterr()
        return code

    return run


@pytest.fixture
def refused(draw):
    def refused(*words, **more):
        assert draw("refused", *words, **more) == 2
        assert draw.out == ""
        assert draw.err.count("\n") == 1
        return draw.err

    return refused


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("given") / "disc.png"
    told_picture("red", "disc", 60).resize((60, 30)).save(path)
    return path


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_each_picture_says_how_it_was_drawn(draw, model, tmp_path):
    assert draw("out", *PROMPTS[:2], "--count", "2", "--seed", "5") == 0
    assert draw.err == ""
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == [
        "a-red-apple-5.png",
        "a-red-apple-6.png",
        "two-green-pears-on-a-table-5.png",
        "two-green-pears-on-a-table-6.png",
    ]
    first = read_origin(paths[1])
    assert f"{paths[1]}  {len(first.image())} tokens  seed 6\n" in draw.out
    assert (first.command, first.prompt, first.seed, first.size) == ("generate", "a red apple", 6, 32)
    assert (first.steps, first.pixel_guidance, first.scheduler) == (2, 1.5, "FlowMatchEulerDiscreteScheduler")
    for part in ("tokenizer", "lm", "decoder"):
        assert getattr(first, part) == fingerprint(model / part)
    assert str(tmp_path).encode() not in paths[1].read_bytes()


def test_tokens_are_written_only_when_they_are_wanted(draw, tmp_path):
    assert draw("out", PROMPTS[0], "--save-tokens", "--quiet") == 0
    assert draw.out == ""
    tokens = TokenizedImage.from_bytes((tmp_path / "out" / "a-red-apple-0.tokens").read_bytes())
    assert tokens == read_origin(tmp_path / "out" / "a-red-apple-0.png").image()
    (tmp_path / "out" / "a-red-apple-0.png").unlink()
    assert draw("out", PROMPTS[0]) == 0
    assert draw("out", PROMPTS[0], "--save-tokens") == 0, "image and tokens are those that are asked for"
    (tmp_path / "out" / "a-red-apple-0.tokens").write_bytes(b"others")
    assert draw("out", PROMPTS[0], "--save-tokens") == 2


def test_generated_images_are_kept_when_a_command_is_run_again(draw, refused, tmp_path, monkeypatch):
    words = [*PROMPTS, "--save-tokens", "--batch-size", "2"]
    assert draw("whole", *words, "--grid", tmp_path / "whole.png") == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    (tmp_path / "cut").mkdir()
    for name in ("the-sun-0.png", "the-sun-0.tokens", "a-blue-car-0.png"):  # cut off before the last tokens
        shutil.copy(tmp_path / "whole" / name, tmp_path / "cut" / name)
    drawn = []

    def generating(drawer, prompts, *rest, **more):
        drawn.extend(prompts)
        return generate(drawer, prompts, *rest, **more)

    monkeypatch.setattr("pictish.pipelines.image_requests.generate", generating)
    assert draw("cut", *words, "--grid", tmp_path / "cut.png") == 0
    assert drawn == [["a red apple"], ["two green pears on a table"]]
    assert f"{tmp_path / 'cut' / 'the-sun-0.png'}  exists already\n" in draw.out
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "cut.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    shutil.copytree(tmp_path / "cut", tmp_path / "refused")
    usual = read_origin(tmp_path / "cut" / "the-sun-0.png").temperature
    said = f"the-sun-0.png was generated with temperature {usual}, and 0.75 is asked for"
    assert said in refused("the moon", "the sun", "--temperature", "0.75")
    assert "was generated with size 32, and 256 is asked for" in refused("the sun", "--size", "256")
    assert not (tmp_path / "refused" / "the-moon-0.png").exists()


def test_like_gives_the_same_bytes_whatever_the_batch_was(draw, tmp_path, monkeypatch):
    assert draw("batch", *PROMPTS, "--temperature", "1.5", "--top-k", "40", "--seed", "3") == 0
    assert draw("fresh", *PROMPTS, "--temperature", "1.5", "--top-k", "40", "--seed", "3") == 0
    monkeypatch.setattr(TextToImage, "from_folder", None)  # tokens are at hand: nothing is asked of the words
    for path in (tmp_path / "batch").iterdir():
        assert path.read_bytes() == (tmp_path / "fresh" / path.name).read_bytes()
        assert draw("again", "--like", path) == 0
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert draw("told", "--like", path, "--seed", "3", "--top-k", "40") == 0  # what it says already
    assert only(tmp_path / "told").read_bytes() == path.read_bytes()


def test_like_with_other_pixels_keeps_the_tokens(draw, tmp_path, model):
    draw("first", PROMPTS[0])
    path = only(tmp_path / "first")
    origin = read_origin(path)
    assert draw("large", "--like", path, "--size", "64", "--steps", "3", "--pixel-guidance", "1") == 0
    large = read_origin(only(tmp_path / "large"))
    assert (large.size, large.steps, large.pixel_guidance, large.tokens) == (64, 3, 1, origin.tokens)
    assert draw("preview", "--like", path, "--steps", "0") == 0
    preview = only(tmp_path / "preview")
    found = read_origin(preview)
    assert (found.steps, found.scheduler, found.tokens) == (0, None, origin.tokens)
    assert found.decoder == fingerprint(model / "preview")
    assert draw("again", "--like", preview) == 0
    assert only(tmp_path / "again").read_bytes() == preview.read_bytes()
    assert draw("back", "--like", preview, "--steps", "2") == 0
    assert only(tmp_path / "back").read_bytes() == path.read_bytes()


def test_like_with_changed_options_draws_other_tokens(draw, tmp_path):
    draw("first", PROMPTS[0], "--style", "noto", "--guidance", "3", "--seed", "4")
    path = only(tmp_path / "first")
    assert path.name == "a-red-apple-noto-style-4.png"
    origin = read_origin(path)
    assert draw("seeds", "--like", path, "--count", "2", "--seed", "8") == 0
    for number in (8, 9):
        found = read_origin(tmp_path / "seeds" / f"a-red-apple-noto-style-{number}.png")
        assert found.tokens != origin.tokens
        assert (found.guidance, found.style, found.prompt) == (3, "noto", "a red apple")
    assert draw("styled", "--like", path, "--style", "twemoji") == 0
    assert read_origin(only(tmp_path / "styled")).words == "a red apple, twemoji style"
    assert draw("words", "--like", path, PROMPTS[2]) == 0
    assert only(tmp_path / "words").name == "the-sun-noto-style-4.png"
    assert draw("direct", PROMPTS[2], "--style", "noto", "--guidance", "3", "--seed", "4") == 0
    assert only(tmp_path / "direct").read_bytes() == only(tmp_path / "words").read_bytes()


@pytest.fixture
def known(model, monkeypatch):
    """The model's folder with a captions.json, without the extra that knows meanings."""
    from pictish.pipelines import sentences

    monkeypatch.setattr(sentences, "installed", lambda: None)
    path = model / "lm" / CAPTIONS
    path.write_bytes(to_bytes(["a dog", "a red apple", "grinning cat", "two pears"]))
    yield path
    path.unlink()


def test_a_prompt_far_from_all_training_captions_is_pointed_out(draw, known, tmp_path, source):
    assert draw("out", "a quantum flux", "red apples", "--count", "2") == 0
    (line,) = draw.err.splitlines()
    assert line.startswith('No training caption is close to "a quantum flux"; the closest are "')
    assert line.count('", "') == 2
    path = tmp_path / "out" / "a-quantum-flux-0.png"
    assert draw("quiet", "a quantum flux", "--quiet") == 0
    assert draw.err == ""
    assert draw("again", "--like", path) == 0  # nothing is asked of the words
    assert draw.err == ""
    assert draw("pictures", "a quantum flux", "--image", source) == 0
    assert draw.err == ""
    known.write_bytes(b"{}")
    assert draw("damaged", "a quantum flux") == 0
    assert draw.err.count("\n") == 1
    assert f"{known}: damaged" in draw.err
    assert only(tmp_path / "damaged").read_bytes() == only(tmp_path / "quiet").read_bytes()


def test_a_style_is_said_behind_the_words(draw, tmp_path, refused):
    draw("style", PROMPTS[0], "--style", "noto")
    draw("words", "a red apple, noto style")
    ours, theirs = read_origin(only(tmp_path / "style")), read_origin(only(tmp_path / "words"))
    assert ours.tokens == theirs.tokens
    assert only(tmp_path / "style").name == only(tmp_path / "words").name
    assert "--style is appended to a PROMPT" in refused(" ", "--style", "noto")


@pytest.mark.parametrize("part", ["tokenizer", "lm", "decoder"])
def test_another_model_is_refused_by_the_part_that_differs(draw, refused, model, tmp_path, part):
    draw("first", PROMPTS[0])
    path = only(tmp_path / "first")
    origin = read_origin(path)
    changed = origin.model_copy(update={part: "f" * 12})
    if part == "tokenizer":
        tokens = origin.image()
        stranger = dataclasses.replace(tokens, tokenizer="f" * 12)
        blob = stranger.to_bytes()
        changed = changed.model_copy(update={"tokens": base64.b64encode(blob).decode()})
    (tmp_path / "other.png").write_bytes(png_with_origin(Image.new("RGB", (8, 8)), changed))
    line = refused("--like", tmp_path / "other.png")
    assert f"made with {part} ffffffffffff, but this model has {fingerprint(model / part)}" in line


def test_another_language_model_is_refused_though_its_tokens_are_there(draw, refused, model, tmp_path):
    draw("first", PROMPTS[0])
    other = shutil.copytree(model, tmp_path / "model")
    tokenizer = Tokenizer.from_folder(model)
    speaking_model(tokenizer, seed=1).save(other / "lm", dtype=torch.float32, overwrite=True)
    assert "made with lm " in refused("--like", only(tmp_path / "first"), model=other)


def test_files_that_do_not_say_how_they_were_drawn(refused, source, tmp_path):
    assert "disc.png: does not say how it was drawn" in refused("--like", source)
    (tmp_path / "x.png").write_bytes(source.read_bytes()[:20])
    assert "does not say" in refused("--like", tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(b"GIF89a")
    assert "not a PNG" in refused("--like", tmp_path / "x.png")
    assert "No such file" in refused("--like", tmp_path / "none.png")
    assert "nothing to generate" in refused()


def test_given_pictures_are_needed_again_only_for_new_tokens(draw, refused, source, tmp_path):
    assert draw("first", "both", "--image", source) == 0
    path = only(tmp_path / "first")
    with Image.open(source) as picture:
        assert read_origin(path).pictures == (digest_of(picture),)
    assert draw("again", "--like", path) == 0
    assert only(tmp_path / "again").read_bytes() == path.read_bytes()
    assert "made from an input image, which is needed again" in refused("--like", path, "--seed", "1")
    told_picture("blue", "bar").save(tmp_path / "bar.png")
    line = refused("--like", path, "--seed", "1", "--image", tmp_path / "bar.png")
    assert "the input image differs" in line
    with Image.open(source) as picture:
        picture.save(tmp_path / "copy.bmp")  # the same pixels
    assert draw("new", "--like", path, "--seed", "1", "--image", tmp_path / "copy.bmp") == 0
    assert only(tmp_path / "new").name == "both-1.png"
    assert draw("alone", "--image", source) == 0
    assert only(tmp_path / "alone").name == "disc-0.png"
    assert draw("alone-again", "--like", only(tmp_path / "alone")) == 0
    assert only(tmp_path / "alone-again").read_bytes() == only(tmp_path / "alone").read_bytes()


def test_an_edit_keeps_the_shape_and_is_repeated(draw, refused, source, tmp_path):
    assert draw("first", source, "make it green", command="edit") == 0
    path = only(tmp_path / "first")
    assert path.name == "disc-make-it-green-0.png"
    origin = read_origin(path)
    assert (origin.command, origin.prompt, origin.keep, origin.image().size) == (
        "edit",
        "make it green",
        True,
        (30, 60),
    )
    assert "made by pictish edit; use its --like" in refused("--like", path)
    assert "which is needed again" in refused("--like", path, command="edit")
    assert draw("again", "--like", path, source, command="edit") == 0
    assert only(tmp_path / "again").read_bytes() == path.read_bytes()
    assert draw("new", "--like", path, source, "make it blue", command="edit") == 0
    assert only(tmp_path / "new").name == "disc-make-it-blue-0.png"
    told_picture("blue", "bar").save(tmp_path / "bar.png")
    assert "the input image differs" in refused("--like", path, tmp_path / "bar.png", command="edit")
    assert "give an IMAGE and an INSTRUCTION" in refused(source, command="edit")


def test_an_edit_is_resumed(draw, refused, source, tmp_path):
    words = (source, "make it green", "--count", "3")
    assert draw("whole", *words, command="edit") == 0
    names = [f"disc-make-it-green-{seed}.png" for seed in range(3)]
    first, *rest = (tmp_path / "whole" / name for name in names)
    before = [path.read_bytes() for path in rest]
    for path in rest:
        path.unlink()
    assert draw("whole", *words, command="edit") == 0
    assert draw.out.startswith(f"{first}  exists already\n")
    assert [path.read_bytes() for path in rest] == before
    assert draw("whole", *words, "--no-keep", command="edit") == 2
    assert "was generated with keep True, and False is asked for" in draw.err
    told_picture("blue", "bar").save(tmp_path / "disc.png")
    assert draw("whole", tmp_path / "disc.png", *words[1:], command="edit") == 2
    assert "was generated with another input image" in draw.err
    assert draw("preview", *words, "--steps", "0", command="edit") == 0
    assert draw("preview", *words, "--steps", "0", command="edit") == 0, "the preview keeps no pixels"
    assert draw.out.count("exists already") == 3


def test_an_edit_that_kept_no_pixels_is_repeated_without_its_source(draw, refused, source, tmp_path):
    draw("first", source, "make it green", "--no-keep", command="edit")
    path = only(tmp_path / "first")
    assert read_origin(path).keep is False
    assert draw("again", "--like", path, command="edit") == 0
    assert only(tmp_path / "again").read_bytes() == path.read_bytes()
    assert "which is needed again" in refused("--like", path, "--keep", command="edit")
    assert draw("preview", source, "make it green", "--steps", "0", command="edit") == 0
    path = only(tmp_path / "preview")
    assert read_origin(path).keep is False, "the preview cannot"
    assert draw("preview-again", "--like", path, command="edit") == 0
    assert only(tmp_path / "preview-again").read_bytes() == path.read_bytes()


def test_the_grid_shows_all_pictures(draw, refused, tmp_path):
    grid = tmp_path / "sheets" / "grid.png"
    assert draw("out", *PROMPTS[:2], "--count", "3", "--grid", grid, "--batch-size", "4") == 0
    assert f"{grid}  6 images\n" in draw.out
    with Image.open(grid) as sheet:
        assert sheet.size == (3 * 33 + 1, 2 * 33 + 1)
        for number in range(6):
            name = f"{('a-red-apple', 'two-green-pears-on-a-table')[number // 3]}-{number % 3}.png"
            left, top = 1 + 33 * (number % 3), 1 + 33 * (number // 3)
            with Image.open(tmp_path / "out" / name) as picture:
                assert sheet.crop((left, top, left + 32, top + 32)).tobytes() == picture.tobytes()
    assert "already exists" in refused(*PROMPTS[:2], "--grid", grid)
    assert "expected a .png name" in refused("a", "--grid", tmp_path / "grid.jpg")
    own = tmp_path / "refused" / "a-0.png"
    assert "that no generated image has" in refused("a", "--grid", own)


def test_a_grid_is_even():
    wide, high = Image.new("RGB", (64, 20), "red"), Image.new("RGB", (30, 64), "blue")
    sheet = even_grid([wide, high, wide], 2)
    assert sheet.size == (2 + 2 * 66, 2 + 2 * 66)
    assert sheet.getpixel((2, 2)) == (255, 255, 255)
    assert sheet.getpixel((2 + 32, 2 + 32)) == (255, 0, 0)
    assert sheet.getpixel((2 + 66 + 32, 2 + 32)) == (0, 0, 255)
    assert sheet.getpixel((2 + 66 + 32, 2 + 66 + 32)) == (255, 255, 255), "the last cell stays empty"


def test_the_pipeline_gives_the_picture_of_the_command(draw, model, tmp_path):
    draw("out", PROMPTS[0], "--seed", "6", "--image-guidance", "1")
    (drawn,) = generate(TextToImage.from_folder(model), [[PROMPTS[0]]], [6], GenerationConfig(size=32))
    with Image.open(only(tmp_path / "out")) as written:
        assert np.array_equal(np.asarray(written), np.asarray(drawn.image))
    origin = read_origin(only(tmp_path / "out"))
    assert (origin.guidance, origin.temperature) == (
        ImageGenerationConfig().guidance,
        ImageGenerationConfig().temperature,
    )


IMPORTED = """
import sys
from pictish.cli import main
code = main(sys.argv[1:])
print("diffusers" in sys.modules)
raise SystemExit(code)
"""


def test_a_preview_needs_no_diffusers(model, tmp_path):
    words = ["generate", "the sun", "--out", tmp_path, "--model", model, "--steps", "0", "--quiet"]
    command = [sys.executable, "-c", IMPORTED, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_names_that_are_taken_are_refused_before_anything_is_loaded(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(TextToImage, "from_folder", None)
    assert "two images would be written to a-red-apple-0.png" in refused("a red apple", "a red apple")
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "the-sun-0.png").write_bytes(png_bytes(Image.new("RGB", (8, 8))))
    assert "the-sun-0.png already exists" in refused("the sun")
    assert "guidance: got nan" in refused("a sun", "--guidance", "nan")
    assert "seed: got 18446744073709551616" in refused("a sun", "--seed", 2**64)


@pytest.fixture(scope="module")
def enlarging(model, tmp_path_factory) -> Path:
    """The same model with an upscaler."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("enlarging") / "model"))
    network = tiny_upscaler()
    save_upscaler(folder / "upscaler", network.config, network.state_dict())
    return folder


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_a_picture_is_as_large_as_it_was_upscaled_unless_a_size_is_given(enlarging, tmp_path):
    for name, words, size in (
        ("own", [], 64),  # the decoder draws 16
        ("two", ["--upscale", "2"], 32),
        ("off", ["--upscale", "1"], 256),
        ("asked", ["--upscale", "4", "--size", "40"], 40),
    ):
        command = ["generate", "the sun", "--model", enlarging, "--out", tmp_path / name, "--quiet", *words]
        assert cli.main([str(word) for word in command]) == 0
        path = only(tmp_path / name)
        factor = {"own": 4, "two": 2, "off": 1, "asked": 4}[name]
        origin = read_origin(path)
        assert (size_of(path), origin.size, origin.upscale) == ((size, size), size, factor)
        assert origin.upscaler == (None if factor == 1 else fingerprint(enlarging / "upscaler"))


def test_like_repeats_the_upscaling(draw, enlarging, tmp_path, monkeypatch):
    assert draw("first", PROMPTS[0], "--upscale", "2", model=enlarging) == 0
    path = only(tmp_path / "first")
    tokens = read_origin(path).tokens
    monkeypatch.setattr(TextToImage, "from_folder", None)  # the tokens are at hand, whatever the upscaling
    assert draw("again", "--like", path, model=enlarging) == 0
    assert only(tmp_path / "again").read_bytes() == path.read_bytes()
    assert draw("other", "--like", path, "--upscale", "4", model=enlarging) == 0
    other = read_origin(only(tmp_path / "other"))
    assert (other.upscale, other.size, other.tokens) == (4, 32, tokens)
    assert only(tmp_path / "other").read_bytes() != path.read_bytes()


def test_pictures_from_before_upscalers_come_back_as_they_were(draw, model, enlarging, tmp_path):
    assert draw("old", PROMPTS[0], model=model) == 0
    path = only(tmp_path / "old")
    origin = read_origin(path)
    assert (origin.upscale, origin.upscaler) == (1, None)
    assert draw("again", "--like", path, model=enlarging) == 0
    assert only(tmp_path / "again").read_bytes() == path.read_bytes()


def test_another_upscaler_or_none_is_refused(draw, refused, model, enlarging, tmp_path):
    assert draw("first", PROMPTS[0], model=enlarging) == 0
    path = only(tmp_path / "first")
    assert "upscale: 4 asked for; this model has no upscaler" in refused("--like", path, model=model)
    assert "upscale: 4 asked for; this model has no upscaler" in refused("a sun", "--upscale", "4")
    other = Path(shutil.copytree(enlarging, tmp_path / "other"))
    network = tiny_upscaler(seed=1)
    save_upscaler(other / "upscaler", network.config, network.state_dict(), overwrite=True)
    assert "made with upscaler " in refused("--like", path, model=other)
    assert draw("plain", "--like", path, "--upscale", "1", model=other) == 0
    (other / "upscaler" / "config.yaml").write_text("part: upscaler\n")
    assert "upscaler: damaged, config.yaml has nothing as model" in refused("a sun", model=other)
    assert "'3' is not one of '1', '2', '4'" in refused("a sun", "--upscale", "3")


def test_an_edit_is_upscaled_in_the_shape_of_its_source(draw, enlarging, source, tmp_path):
    words = [str(word) for word in ("edit", source, "make it green", "--model", enlarging)]
    assert cli.main([*words, "--out", str(tmp_path / "edit"), "--quiet"]) == 0
    path = only(tmp_path / "edit")
    assert size_of(path) == (64, 32)
    assert draw("again", "--like", path, source, command="edit", model=enlarging) == 0
    assert only(tmp_path / "again").read_bytes() == path.read_bytes()
