"""Images of a `Pipeline` are stored with how they were drawn, as those of the commands are."""

import pytest
from PIL import Image

import pictish
from pictish.cli import main
from pictish.data.provenance import read_origin
from tests.shards import told_picture
from tests.whole import write_adaptor


@pytest.fixture(scope="module")
def pipe(whole_model):
    return pictish.Pipeline.from_pretrained(whole_model, device="cpu")


def command(folder, *words) -> bytes:
    """The one image that a command writes."""
    assert main([*map(str, words), "--out", str(folder), "--device", "cpu", "--quiet"]) == 0
    (path,) = folder.iterdir()
    return path.read_bytes()


def test_a_stored_image_is_the_file_of_the_command(pipe, whole_model, tmp_path):
    path = tmp_path / "apple.png"
    asked = {"seed": 3, "aspect_ratio": (3, 2), "size": 48, "guidance_scale": 1.5, "best_of": 3}
    pictish.save_image(pipe.generate("a red apple", **asked), path)
    options = ["--seed", 3, "--aspect", "3:2", "--size", 48, "--guidance", 1.5, "--best-of", 3]
    expected = command(tmp_path / "out", "generate", "a red apple", "--model", whole_model, *options)
    assert path.read_bytes() == expected
    again = command(tmp_path / "again", "generate", "--like", path, "--model", whole_model)
    assert again == expected
    assert read_origin(path).best_of == 3
    one = pipe.generate("a red apple", **{**asked, "best_of": 1})
    assert pipe.generate("a red apple", **asked).tobytes() != one.tobytes(), "another candidate is better"


@pytest.mark.parametrize("keep", [True, False])
def test_a_stored_edit_is_the_file_of_the_command(pipe, whole_model, tmp_path, keep):
    told_picture("red", "disc", 60).save(tmp_path / "disc.png")
    edited = pipe.edit(tmp_path / "disc.png", "make it green", keep_unchanged=keep, size=32)
    pictish.save_image(edited, tmp_path / "edited.png")
    words = ["edit", tmp_path / "disc.png", "make it green", "--model", whole_model, "--size", 32]
    expected = command(tmp_path / "out", *words, "--keep" if keep else "--no-keep")
    assert (tmp_path / "edited.png").read_bytes() == expected


def test_each_of_several_images_has_its_own_seed_and_prompt(pipe, tmp_path):
    drawn = pipe.generate(["a red apple", "the sun"], num_images=2, seed=5, num_inference_steps=0)
    for number, image in enumerate(drawn):
        pictish.save_image(image, tmp_path / f"{number}.png")
    origins = [read_origin(tmp_path / f"{number}.png") for number in range(4)]
    found = [(origin.prompt, origin.seed, origin.steps) for origin in origins]
    assert found == [("a red apple", 5, 0), ("a red apple", 6, 0), ("the sun", 5, 0), ("the sun", 6, 0)]


def test_the_adaptor_is_named(pipe, whole_model, tmp_path):
    pipe.load_adaptor(write_adaptor(whole_model, tmp_path / "red", 1), "red")
    image = pipe.generate("a red apple", adaptor="red", num_inference_steps=0)
    pictish.save_image(image, tmp_path / "apple.png")
    origin = read_origin(tmp_path / "apple.png")
    assert origin.adaptor == "red"
    assert origin.adaptor_weights is not None
    pipe.unload_adaptor("red")


def test_a_changed_image_has_no_recipe(pipe, tmp_path):
    image = pipe.generate("a red apple", num_inference_steps=0)
    path = tmp_path / "apple.png"
    with pytest.raises(ValueError, match=r"changed since it was drawn; image\.save writes it without"):
        pictish.save_image(image.resize((20, 20)), path)
    with pytest.raises(ValueError, match="not drawn by a pipeline"):
        pictish.save_image(Image.new("RGB", (8, 8)), path)
    with pytest.raises(ValueError, match=r"apple\.jpg given; a recipe is stored in a file NAME\.png"):
        pictish.save_image(image, tmp_path / "apple.jpg")
    image.putpixel((0, 0), (1, 2, 3))
    with pytest.raises(ValueError, match="changed"):
        pictish.save_image(image, path)
    assert not path.exists()


def test_the_default_config_draws_what_no_config_draws(pipe):
    config = pipe.default_config
    assert None not in (config.guidance_scale, config.temperature, config.num_inference_steps, config.size)
    assert pipe.generate("the sun", config=config).tobytes() == pipe.generate("the sun").tobytes()


def test_arguments_of_the_wrong_type_are_named(pipe):
    with pytest.raises(TypeError, match=r"num_images_per_prompt: no such argument; the settings are"):
        pipe.generate("the sun", num_images_per_prompt=2)
    with pytest.raises(TypeError, match="seed: str given; a whole number would fit"):
        pipe.generate("the sun", seed="1")
    with pytest.raises(TypeError, match="config: dict given; a GenerationConfig would fit"):
        pipe.generate("the sun", config={"size": 48})
    with pytest.raises(TypeError, match="question: int given; a str, or a list of them, would fit"):
        pipe.describe([Image.new("RGB", (8, 8))], 3)
