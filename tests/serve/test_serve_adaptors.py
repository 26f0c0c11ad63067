"""`pictish serve` with adaptors: requests name them as their model."""

import base64
import concurrent.futures
import io

import httpx
import openai
import pytest
from PIL import Image

from pictish.cli import main
from pictish.data.images import png_bytes
from pictish.data.provenance import read_origin
from pictish.pipelines.pipeline import Pipeline
from pictish.serve.app import create_app
from pictish.serve.config import ServeConfig
from tests.serve.running import about, running
from tests.shards import told_picture
from tests.whole import speaking_model, write_adaptor

MODELS = (None, "red", "blue")


@pytest.fixture(scope="module")
def folders(whole_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptors")
    return {name: write_adaptor(whole_model, folder / name, seed) for seed, name in enumerate(MODELS[1:], 1)}


@pytest.fixture(scope="module")
def server(whole_model, folders):
    with running(whole_model, folders) as found:
        yield found


@pytest.fixture(scope="module")
def pipe(whole_model, folders):
    found = Pipeline.from_pretrained(whole_model, device="cpu")
    for name, folder in folders.items():
        found.load_adaptor(folder, name)
    return found


def test_adaptors_are_listed_as_models(client):
    assert [(one.id, one.parent) for one in client.models.list()] == [
        ("tiny", None),
        ("red", "tiny"),
        ("blue", "tiny"),
    ]
    assert client.models.retrieve("blue").parent == "tiny"


def test_images_of_the_model_and_its_adaptors_are_drawn_together_as_if_alone(client, pipe, tmp_path):
    def draw(name: str | None) -> str:
        extra = {"seed": 4, "num_inference_steps": 0}
        asked = {} if name is None else {"model": name}
        return client.images.generate(prompt="a red disc", **asked, extra_body=extra).data[0].b64_json

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        drawn = list(pool.map(draw, MODELS * 2))
    assert drawn[:3] == drawn[3:]
    for name, text in zip(MODELS, drawn[:3], strict=True):
        blob = base64.b64decode(text)
        expected = pipe.generate("a red disc", seed=4, num_inference_steps=0, adaptor=name)
        assert Image.open(io.BytesIO(blob)).convert("RGB").tobytes() == expected.tobytes()
        (tmp_path / "drawn.png").write_bytes(blob)
        origin = read_origin(tmp_path / "drawn.png")
        assert origin.adaptor == name
        assert (origin.adaptor_weights is None) == (name is None)
    assert len(set(drawn)) == 3


def test_chat_is_answered_by_the_adaptor(client, pipe):
    image = told_picture("red", "disc")
    texts = []
    for name in MODELS:
        answer = client.chat.completions.create(
            model=name or "tiny", messages=about(image, "what?"), max_tokens=6
        )
        assert answer.model == (name or "tiny")
        texts.append(answer.choices[0].message.content)
    assert texts == pipe.describe([image] * 3, "what?", max_new_tokens=6, adaptor=MODELS)
    assert len(set(texts)) == 3


def test_what_an_adaptor_does_not_do_is_refused(server, client):
    image = told_picture("red", "disc")
    edits = {"data": {"prompt": "x", "model": "red"}, "files": {"image": ("a.png", png_bytes(image))}}
    url = about(image, "x")[0]["content"][0]["image_url"]["url"]
    for answer in (
        httpx.post(f"{server.url}/v1/images/edits", **edits),
        httpx.post(f"{server.url}/v1/tokenize", json={"image": url, "model": "red"}),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "model")
        assert "red is an adaptor" in error["message"]
    with pytest.raises(openai.NotFoundError, match="'green' is not served here; tiny, red, blue would fit"):
        client.images.generate(prompt="x", model="green")


def test_adaptors_that_do_not_fit_are_refused_at_the_start(whole_model, folders, tmp_path, capsys):
    pipe = Pipeline.from_pretrained(whole_model, device="cpu")
    with pytest.raises(ValueError, match="name: red is the model and an adaptor"):
        create_app(pipe, ServeConfig(name="red"), folders)
    other = tmp_path / "other"
    other.mkdir()
    for part in ("tokenizer", "decoder", "preview"):
        (other / part).symlink_to(whole_model / part)
    speaking_model(pipe.tokenizer, seed=9).save(other / "lm")
    with pytest.raises(ValueError, match=str(folders["red"])):
        create_app(Pipeline.from_pretrained(other, device="cpu"), None, folders)
    assert main(["serve", "--model", str(whole_model), "--adaptor-folder", str(tmp_path)]) == 2
    assert "no adaptor, nor a folder of adaptors" in capsys.readouterr().err
