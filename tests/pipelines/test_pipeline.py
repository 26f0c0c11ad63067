"""`pictish.Pipeline` on a tiny model: what commands give, lazily, and stopped when asked."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pictish
from pictish import cli
from pictish.lm.captions import CAPTIONS, to_bytes
from pictish.lm.model import UnifiedModel
from pictish.pipelines.reconstruct import Reconstructor
from tests.shards import told_picture


@pytest.fixture(scope="module")
def pipe(whole_model) -> pictish.Pipeline:
    return pictish.Pipeline.from_pretrained(whole_model, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two images, one with transparency."""
    folder = tmp_path_factory.mktemp("pictures")
    told_picture("red", "disc", 60).resize((60, 30)).save(folder / "disc.png")
    bar = told_picture("blue", "bar", 60).convert("RGBA")
    bar.putalpha(bar.getchannel("R"))
    bar.save(folder / "bar.png")
    return folder


@pytest.fixture
def command(whole_model, tmp_path, capsys):
    """Run a command with the tiny model; what it prints."""

    def run(*words) -> str:
        code = cli.main([str(word) for word in (*words, "--model", whole_model, "--device", "cpu")])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


def same(path: Path, image: Image.Image) -> bool:
    with Image.open(path) as written:
        return written.size == image.size and np.array_equal(np.asarray(written), np.asarray(image))


def test_a_seed_gives_the_picture_of_the_command(pipe, command, tmp_path):
    command("generate", "a red apple", "the sun", "--count", 2, "--seed", 5, "--size", 32, "--out", tmp_path)
    drawn = pipe.generate(["a red apple", "the sun"], num_images=2, seed=5, size=32)
    names = ["a-red-apple-5", "a-red-apple-6", "the-sun-5", "the-sun-6"]
    assert all(same(tmp_path / f"{name}.png", image) for name, image in zip(names, drawn, strict=True))
    assert drawn[0].tobytes() != drawn[1].tobytes()
    tokens = pipe.generate_tokens(["a red apple", "the sun"], num_images=2, seed=5)
    assert pipe.detokenize(tokens[:1], seed=5, size=32)[0].tobytes() == drawn[0].tobytes()


def test_settings_are_those_of_the_options(pipe, command, pictures, tmp_path):
    words = ["--temperature", 1.5, "--top-k", 40, "--guidance", 3, "--image-guidance", 1.2, "--max-tokens", 5]
    words += ["--min-tokens", 2, "--steps", 1, "--pixel-guidance", 1, "--aspect", "3:2", "--size", 48]
    command("generate", "both", "--image", pictures / "bar.png", *words, "--out", tmp_path)
    config = pictish.GenerationConfig(
        temperature=1.5, top_k=40, guidance_scale=3, image_guidance_scale=1.2, max_codes=9, min_codes=2
    )
    image = pipe.generate(
        "both",
        images=[pictures / "bar.png"],
        aspect_ratio=(3, 2),
        config=config,
        max_codes=5,
        num_inference_steps=1,
        decoder_guidance_scale=1,
        size=48,
    )
    assert image.size == (48, 32)
    assert same(tmp_path / "both-0.png", image)


def test_a_prompt_far_from_all_training_captions_is_warned_about_once(
    whole_model, pictures, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("pictish.pipelines.sentences.installed", lambda: None)
    folder = Path(shutil.copytree(whole_model, tmp_path / "model"))
    (folder / "lm" / CAPTIONS).write_bytes(to_bytes(["a dog", "a red apple"]))
    pipe = pictish.Pipeline.from_pretrained(folder, device="cpu")
    settings = {"num_inference_steps": 0, "size": 16}
    for _ in range(2):
        pipe.generate(["a quantum flux", "red apples"], **settings)
    pipe.generate("a quantum flux", images=[pictures / "disc.png"], **settings)
    (warning,) = caplog.records
    assert (warning.levelname, warning.name) == ("WARNING", "pictish.pipelines.pipeline")
    assert warning.getMessage().startswith('No training caption is close to "a quantum flux"')


@pytest.mark.parametrize("keep", [True, False])
def test_an_edit_is_that_of_the_command(pipe, command, pictures, tmp_path, keep):
    flag = "--keep" if keep else "--no-keep"
    command("edit", pictures / "disc.png", "make it green", flag, "--size", 32, "--out", tmp_path)
    image = pipe.edit(pictures / "disc.png", "make it green", keep_unchanged=keep, size=32)
    assert image.size == (32, 16)
    assert same(tmp_path / "disc-make-it-green-0.png", image)


def test_a_description_is_that_of_the_command(pipe, command, pictures):
    text = command("describe", pictures / "bar.png", "which colour?", "--max-new-tokens", 7)
    with Image.open(pictures / "bar.png") as image:
        assert text == pipe.describe(image, "which colour?", max_new_tokens=7) + "\n"
    texts = pipe.describe([pictures / "bar.png", pictures / "disc.png"], max_new_tokens=4, batch_size=1)
    assert len(texts) == 2
    sampled = {
        pipe.describe(pictures / "bar.png", temperature=3.0, seed=n, max_new_tokens=6) for n in (1, 1, 2)
    }
    assert len(sampled) == 2


def test_tokens_and_pictures_are_those_of_the_commands(pipe, command, pictures, tmp_path):
    command("tokenize", pictures, tmp_path / "tokens", "--workers", 0, "--quiet")
    command("detokenize", tmp_path / "tokens", tmp_path / "back", "--seed", 2, "--size", 32, "--quiet")
    names = ["bar", "disc"]
    tokens = pipe.tokenize([pictures / f"{name}.png" for name in names])
    for name, one in zip(names, tokens, strict=True):
        assert one.to_bytes() == (tmp_path / "tokens" / f"{name}.tokens").read_bytes()
        assert pictish.read_tokens(tmp_path / "tokens" / f"{name}.tokens") == one
    images = pipe.detokenize(tokens, seed=2, size=32)
    assert all(same(tmp_path / "back" / f"{n}.png", image) for n, image in zip(names, images, strict=True))
    assert pipe.detokenize(tokens[1], seed=2, size=32).tobytes() == images[1].tobytes()


def test_transparent_pictures_have_the_tokens_of_their_file_however_they_are_held(pipe, pictures):
    path = pictures / "bar.png"
    expected = pipe.tokenize(path)
    with Image.open(path) as image:
        image.load()
    assert image.mode == "RGBA"
    for held in (str(path), path.read_bytes(), image, np.asarray(image)):
        assert pipe.tokenize(held) == expected
        assert pipe.tokenizer.tokenize([held]) == [expected]
    assert pipe.tokenize(image.convert("RGB")) != expected, "without its alpha it is another picture"


def test_how_many_tokens_there_are(pipe, pictures):
    path = pictures / "disc.png"
    assert len(pipe.tokenize(path, budget=3)) == 3
    assert len(pipe.tokenize(path, threshold=0.01)) >= len(pipe.tokenize(path, threshold=0.99))
    assert pipe.tokenize([path, path], seed=4) == [pipe.tokenize(path, seed=4), pipe.tokenize(path, seed=5)]


def test_a_generator_gives_other_pictures_each_time_and_the_global_one_is_left_alone(pipe):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    first, second = (pipe.generate_tokens("a red apple", generator=generator) for _ in range(2))
    again = pipe.generate_tokens("a red apple", generator=torch.Generator().manual_seed(0))
    assert first == again != second
    assert torch.equal(torch.get_rng_state(), before)


def test_a_list_of_seeds_or_questions_gives_what_each_gives_alone(pipe, pictures):
    small = {"num_inference_steps": 0, "size": 16}
    several = pipe.generate("a red apple", num_images=3, seed=[7, 2, 7], **small)
    alone = [pipe.generate("a red apple", seed=seed, **small) for seed in (7, 2)]
    assert [one.tobytes() for one in several] == [alone[n].tobytes() for n in (0, 1, 0)]
    prompts = pipe.generate_tokens(["a red apple", "the sun"], seed=(5, 6))
    assert prompts[1].to_bytes() == pipe.generate_tokens("the sun", seed=6).to_bytes()
    one, other = pictures / "disc.png", pictures / "bar.png"
    asked = ["what is it?", "which colour?"]
    answers = [pipe.describe(one, question, max_new_tokens=4) for question in asked]
    assert pipe.describe(one, asked, max_new_tokens=4) == answers
    assert pipe.describe([one, other], [asked[0], None], max_new_tokens=4) == [
        answers[0],
        pipe.describe(other, max_new_tokens=4),
    ]


def test_parts_are_loaded_when_they_are_needed_and_once(whole_model, pictures, monkeypatch):
    loaded = []
    for part in (UnifiedModel, Reconstructor):
        original = part.from_folder

        def counted(*words, _name=part.__name__, _original=original, **more):
            loaded.append(_name)
            return _original(*words, **more)

        monkeypatch.setattr(part, "from_folder", counted)
    pipe = pictish.Pipeline.from_pretrained(str(whole_model), device="cpu")
    assert repr(pipe) == f"Pipeline({str(whole_model)!r}, cpu, float32; loaded: nothing)"
    tokens = pipe.tokenize(pictures / "disc.png")
    assert loaded == []
    assert repr(pipe).endswith("loaded: tokenizer)")
    threads = [
        threading.Thread(target=pipe.detokenize, args=(tokens,), kwargs={"size": 16}) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == ["Reconstructor"]
    pipe.describe(pictures / "disc.png", max_new_tokens=1)
    assert loaded == ["Reconstructor", "UnifiedModel"]
    assert pipe.language_model.image_tokens.fingerprint == pipe.tokenizer.fingerprint


def test_progress_is_told_step_by_step(pipe, pictures):
    reported: list[pictish.Progress] = []
    pipe.generate(
        "the sun", num_images=3, batch_size=2, num_inference_steps=2, size=16, callback=reported.append
    )
    assert {one.stage for one in reported} == {"language_model", "decoder"}
    assert {(one.done, one.total) for one in reported} == {(0, 3), (2, 3)}
    last = [one for one in reported if one.stage == "decoder"]
    assert [(one.step, one.num_steps) for one in last] == [(1, 2), (2, 2)] * 2
    assert all(1 <= one.step <= one.num_steps for one in reported)
    reported.clear()
    pipe.tokenize([pictures / "disc.png"] * 3, batch_size=2, callback=reported.append)
    assert [(one.stage, one.done) for one in reported] == [("tokenizer", 0), ("tokenizer", 2)]
    reported.clear()
    pipe.describe(pictures / "disc.png", max_new_tokens=3, callback=reported.append)
    assert [one.step for one in reported] == list(range(1, len(reported) + 1))


@pytest.mark.parametrize("stage", ["language_model", "decoder"])
def test_a_call_is_cancelled_between_two_steps(pipe, stage):
    reported = []
    stop = threading.Event()

    def callback(progress: pictish.Progress) -> None:
        reported.append(progress)
        if progress.stage == stage:
            stop.set()

    with pytest.raises(pictish.Cancelled):
        pipe.generate("the sun", num_inference_steps=3, size=16, callback=callback, cancel=stop)
    assert [(one.stage, one.step) for one in reported if one.stage == stage] == [(stage, 1)]
    with pytest.raises(pictish.Cancelled):
        pipe.tokenize(told_picture("red", "disc", 60), cancel=lambda: True)
    assert len(pipe.tokenize(told_picture("red", "disc", 60), cancel=lambda: False)) >= 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda pipe, path: pipe.generate(), "prompt: empty"),
        (lambda pipe, path: pipe.generate(" "), "prompt: empty"),
        (lambda pipe, path: pipe.generate(["a", ""]), "prompt: empty"),
        (lambda pipe, path: pipe.generate("a", num_images=0), "num_images: 0 asked for"),
        (lambda pipe, path: pipe.generate("a", batch_size=0), "batch_size: 0 asked for"),
        (lambda pipe, path: pipe.generate("a", seed=-1), "seed: -1 asked for"),
        (lambda pipe, path: pipe.generate("a", num_images=2, seed=2**64 - 1), "seed: 18446744073709551615"),
        (lambda pipe, path: pipe.generate("a", seed=1, generator=torch.Generator()), "seed and generator"),
        (lambda pipe, path: pipe.generate("a", seed=[1, 2]), "seed: 2 given for 1 images"),
        (lambda pipe, path: pipe.generate("a", num_images=2, seed=[1, 2**64]), "seed: 18446744073709551616"),
        (lambda pipe, path: pipe.describe([path], ["a", "b"]), "question: 2 given for 1 images"),
        (lambda pipe, path: pipe.generate("a", images=path), "images: one image was given"),
        (lambda pipe, path: pipe.generate("a", aspect_ratio=(0, 2)), "aspect_ratio: .0, 2. asked for"),
        (lambda pipe, path: pipe.generate("a", top_p=2), "top_p: 2 asked for"),
        (lambda pipe, path: pipe.generate("a", max_codes=99), "1 to 99 tokens asked for; an image"),
        (lambda pipe, path: pipe.generate("a", upscale=2), "upscale: 2 asked for; this model has no"),
        (lambda pipe, path: pipe.edit(path, ""), "instruction: empty"),
        (lambda pipe, path: pipe.describe(path, " "), "an empty question"),
        (lambda pipe, path: pipe.describe(path, max_new_tokens=0), "max_new_tokens: 0 asked for"),
        (lambda pipe, path: pipe.describe(path, temperature=-1), "temperature -1 asked for"),
        (
            lambda pipe, path: pipe.tokenize(path, budget=99),
            "budget: 99 asked for; an image of this model has",
        ),
        (lambda pipe, path: pipe.tokenize(path, threshold=1.0), "threshold: 1.0 asked for"),
        (lambda pipe, path: pipe.tokenize(path, budget=2, seed=1), "budget and seed were given"),
        (lambda pipe, path: pipe.tokenize([path, b"text"]), "image 1: not an image"),
        (lambda pipe, path: pipe.tokenize(path, max_pixels=9), "disc.png: 1,800 pixels; at most 9"),
        (lambda pipe, path: pictish.Pipeline.from_pretrained("none"), "no tokenizer found for model 'none'"),
        (
            lambda pipe, path: pictish.Pipeline.from_pretrained(pipe.model, dtype="int8"),
            "dtype: int8 asked for",
        ),
        (
            lambda pipe, path: pictish.Pipeline.from_pretrained(pipe.model, device="tpu"),
            "device tpu: not known",
        ),
    ],
)
def test_what_cannot_be_done_is_named(pipe, pictures, call, words):
    with pytest.raises(ValueError, match=words):
        call(pipe, pictures / "disc.png")


def test_tokens_of_another_tokenizer_are_refused(pipe, pictures):
    tokens = pipe.tokenize(pictures / "disc.png")
    other = pictish.TokenizedImage(
        tokens.ids, tokens.cells, tokens.grid, tokens.size, "f" * 12, tokens.codebook_size
    )
    with pytest.raises(ValueError, match="tokens of tokenizer ffffffffffff"):
        pipe.detokenize([tokens, other])
    with pytest.raises(FileNotFoundError):
        pipe.tokenize("none.png")
