"""`pictish serve` with a masked language model: what it writes, it writes whole, and the same as alone."""

import concurrent.futures

import numpy as np
import pytest
from PIL import Image

from pictish.data.images import png_bytes
from pictish.pipelines.pipeline import Pipeline
from tests.serve.running import about, image_in, photo, running


@pytest.fixture(scope="module")
def server(masked_model):
    with running(masked_model) as found:
        yield found


@pytest.fixture(scope="module")
def pipe(masked_model):
    return Pipeline.from_pretrained(masked_model, device="cpu")


def test_images_and_answers_are_those_of_the_pipeline(client, pipe):
    def draw(seed: int) -> bytes:
        answer = client.images.generate(prompt="a red apple", size="64x64", extra_body={"seed": seed})
        return image_in(answer.data[0].b64_json).tobytes()

    def answer(words: str) -> str:
        made = client.chat.completions.create(model="tiny", messages=about(photo(), words), max_tokens=6)
        return made.choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        drawn, said = pool.map(draw, range(4)), pool.map(answer, ["what is it?", "which colour?"])
        drawn, said = list(drawn), list(said)
    assert drawn == [pipe.generate("a red apple", seed=seed, size=64).tobytes() for seed in range(4)]
    assert len(set(drawn)) == 4
    assert said == [
        pipe.describe(photo(), words, max_new_tokens=6) for words in ("what is it?", "which colour?")
    ]


def test_a_mask_redraws_the_cells_that_it_reaches_into(client, pipe):
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    mask = Image.new("RGBA", source.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    answer = client.images.edit(
        image=png_bytes(source), mask=png_bytes(mask), prompt="green", size="64x64", extra_body={"seed": 4}
    )
    before = pipe.tokenize(source)
    left = np.arange(before.grid[1]) < before.grid[1] // 2
    outside = np.tile(left, before.grid[0])
    found = answer.data[0].tokens
    kept = {(code, cell) for code, cell in zip(found["ids"], found["cells"], strict=True) if outside[cell]}
    assert kept == {
        (int(code), int(cell)) for code, cell in zip(before.ids, before.cells, strict=True) if outside[cell]
    }
    again = pipe.edit(source, "green", region=(32, 0, 32, 64), seed=4, size=64)
    inside = (40, 8, 56, 56)  # where pixels of the source are not mixed in
    assert image_in(answer.data[0].b64_json).crop(inside).tobytes() == again.crop(inside).tobytes()
    assert again.crop(inside).tobytes() != source.crop(inside).tobytes()


def test_a_streamed_image_is_the_whole_one(client):
    settings = {"seed": 2}
    events = list(
        client.images.generate(prompt="a red apple", stream=True, partial_images=2, extra_body=settings)
    )
    assert [event.type for event in events] == ["image_generation.completed"]
    whole = client.images.generate(prompt="a red apple", extra_body=settings)
    assert events[0].b64_json == whole.data[0].b64_json
