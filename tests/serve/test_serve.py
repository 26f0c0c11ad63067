"""`pictish serve`: the official OpenAI client against a real server with a tiny model."""

import base64
import concurrent.futures
import io
import json
import re
import socket
import time

import httpx
import pytest
from PIL import Image

from pictish.data.images import png_bytes
from pictish.data.provenance import read_origin
from pictish.pipelines.pipeline import Pipeline
from tests.serve.running import about, data_url, image_in, photo, running, wait_for


@pytest.fixture(scope="module")
def server(whole_model):
    with running(whole_model, queue_length=32, max_n=4, max_body_bytes=200_000, max_pixels=40_000) as found:
        yield found


@pytest.fixture(scope="module")
def pipe(whole_model):
    return Pipeline.from_pretrained(whole_model, device="cpu")


def test_images_are_those_of_the_pipeline(client, pipe):
    answer = client.images.generate(prompt="a red apple", n=2, size="96x64", extra_body={"seed": 5})
    expected = pipe.generate("a red apple", num_images=2, seed=5, aspect_ratio=(96, 64), size=96)
    assert answer.size == "96x64"
    for one, image in zip(answer.data, expected, strict=True):
        assert image_in(one.b64_json).tobytes() == image.tobytes()
    tokens = pipe.generate_tokens("a red apple", seed=5)
    assert answer.data[0].tokens["ids"] == tokens.ids.tolist()
    assert answer.usage.output_tokens == sum(len(one.tokens["ids"]) for one in answer.data)
    assert answer.usage.input_tokens > 0


def test_settings_are_passed_on(client, pipe):
    extra = {"seed": 1, "guidance_scale": 3.0, "temperature": 0.0, "max_codes": 4, "num_inference_steps": 0}
    answer = client.images.generate(prompt="two pears", extra_body=extra)
    image = pipe.generate("two pears", **extra)
    assert image_in(answer.data[0].b64_json).tobytes() == image.tobytes()
    assert len(answer.data[0].tokens["ids"]) <= 4


def test_candidates_are_ranked_as_by_the_pipeline(client, pipe):
    def draw(seed: int) -> bytes:
        answer = client.images.generate(prompt="two pears", extra_body={"seed": seed, "best_of": 5})
        return image_in(answer.data[0].b64_json).tobytes()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, range(4)))
    assert together == [pipe.generate("two pears", seed=seed, best_of=5).tobytes() for seed in range(4)]
    assert together != [pipe.generate("two pears", seed=seed).tobytes() for seed in range(4)]


def test_a_png_says_how_it_was_drawn(client, tmp_path):
    answer = client.images.generate(prompt="the sun", size="60x40", extra_body={"seed": 3})
    file = tmp_path / "sun.png"
    file.write_bytes(base64.b64decode(answer.data[0].b64_json))
    origin = read_origin(file)
    assert (origin.command, origin.prompt, origin.seed, origin.aspect) == (
        "generate",
        "the sun",
        3,
        "300:200",
    )
    assert origin.image().ids.tolist() == answer.data[0].tokens["ids"]


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats(client, kind):
    answer = client.images.generate(prompt="the sun", output_format=kind, output_compression=80)
    assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).format == kind.upper()


def test_previews_are_streamed_before_the_image(client):
    settings = {"seed": 2, "min_codes": 10}
    events = list(
        client.images.generate(prompt="a red apple", stream=True, partial_images=3, extra_body=settings)
    )
    kinds = [event.type for event in events]
    assert kinds[-1] == "image_generation.completed"
    assert 1 <= len(kinds) - 1 <= 3
    assert set(kinds[:-1]) == {"image_generation.partial_image"}
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(events) - 1))
    whole = client.images.generate(prompt="a red apple", extra_body=settings)
    assert events[-1].b64_json == whole.data[0].b64_json
    sizes = {image_in(event.b64_json).size for event in events}
    assert len(sizes) == 1


def test_every_picture_is_the_one_drawn_alone(client):
    def draw(number: int) -> str:
        extra = {"seed": number, "guidance_scale": 1.0 + number % 3, "num_inference_steps": number % 2 * 2}
        words = ("a red apple", "two green pears beside a house")[number % 2]
        return client.images.generate(prompt=words, extra_body=extra).data[0].b64_json

    alone = [draw(number) for number in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(draw, reversed(range(12))))[::-1]
    assert together == alone
    assert len(set(alone)) > 6


def test_edits_are_those_of_the_pipeline(client, pipe):
    source = photo()
    answer = client.images.edit(image=png_bytes(source), prompt="make it green", extra_body={"seed": 4})
    expected = pipe.edit(source, "make it green", seed=4)
    assert image_in(answer.data[0].b64_json).tobytes() == expected.tobytes()


def test_a_mask_keeps_what_is_opaque(client):
    source = photo((64, 64))
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    answer = client.images.edit(
        image=png_bytes(source), mask=png_bytes(mask), prompt="green", size="64x64", extra_body={"seed": 4}
    )
    image = image_in(answer.data[0].b64_json)
    left = (0, 0, 32, 64)
    assert image.crop(left).tobytes() == source.crop(left).tobytes()
    assert image.crop((32, 0, 64, 64)).tobytes() != source.crop((32, 0, 64, 64)).tobytes()


def test_several_images_are_drawn_together(client, pipe):
    images = [photo(), photo(colour="green")]
    files = [(f"{n}.png", png_bytes(image)) for n, image in enumerate(images)]
    answer = client.images.edit(image=files, prompt="both", extra_body={"seed": 1})
    expected = pipe.generate("both", images=images, seed=1, aspect_ratio=(40, 30))
    assert image_in(answer.data[0].b64_json).tobytes() == expected.tobytes()


def test_chat_describes_and_answers(client, pipe):
    source = photo()
    for words in (None, "what is it?"):
        answer = client.chat.completions.create(model="tiny", messages=about(source, words), max_tokens=6)
        assert answer.choices[0].message.content == pipe.describe(source, words, max_new_tokens=6)
        assert answer.usage.prompt_tokens > 0
        assert answer.choices[0].finish_reason in ("stop", "length")


def test_chat_is_streamed_in_pieces(client):
    asked = {"model": "tiny", "messages": about(photo(), "what is it?"), "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 4
    assert chunks[-1].usage == whole.usage


def test_chat_draws(client, pipe):
    message = [{"role": "user", "content": "a red apple"}]
    answer = client.chat.completions.create(
        model="tiny", messages=message, modalities=["image"], extra_body={"seed": 7}
    )
    url = answer.choices[0].message.content[0]["image_url"]["url"]
    expected = pipe.generate("a red apple", seed=7)
    assert image_in(url.partition(",")[2]).tobytes() == expected.tobytes()
    edited = client.chat.completions.create(
        model="tiny", messages=about(photo(), "make it green"), modalities=["image"], stream=True
    )
    contents = [one.choices[0].delta.content for one in edited if one.choices[0].delta.content]
    image = image_in(contents[0][0]["image_url"]["url"].partition(",")[2])
    assert image.tobytes() == pipe.edit(photo(), "make it green").tobytes()


def test_tokens_there_and_back(server, pipe):
    source = photo((64, 64))
    tokens = httpx.post(f"{server.url}/v1/tokenize", json={"image": data_url(source), "budget": 5}).json()
    assert tokens["tokens"]["ids"] == pipe.tokenize(source, budget=5).ids.tolist()
    assert tokens["count"] == 5
    answer = httpx.post(f"{server.url}/v1/detokenize", json={"tokens": tokens["tokens"]}, timeout=60).json()
    expected = pipe.detokenize(pipe.tokenize(source, budget=5))
    assert image_in(answer["data"][0]["b64_json"]).tobytes() == expected.tobytes()


def test_models_and_status(server, client):
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    client.images.generate(prompt="a red apple")
    text = httpx.get(f"{server.url}/metrics").text
    line = 'pictish_requests_total{method="POST",route="/v1/images/generations",status="200"}'
    assert line in text
    assert "pictish_jobs_running 0.0" in text


def test_the_documentation_comes_from_the_server_alone(server):
    page = httpx.get(f"{server.url}/docs").text
    loaded = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert len(loaded) >= 3
    for path in loaded:
        assert httpx.get(server.url + path).status_code == 200
    assert "http" not in page


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "part"),
    [
        ("images/generations", {}, 400, "prompt", "required"),
        ("images/generations", {"prompt": "  "}, 400, "prompt", "empty"),
        ("images/generations", {"prompt": "x" * 4001}, 400, "prompt", "4001 characters"),
        ("images/generations", {"prompt": "x", "seed": -1}, 400, "seed", "greater"),
        ("images/generations", {"prompt": "x", "n": 5}, 400, "n", "up to 4"),
        ("images/generations", {"prompt": "x", "size": "64*64"}, 400, "size", "WIDTHxHEIGHT"),
        ("images/generations", {"prompt": "x", "size": "64x2000"}, 400, "size", "up to 1024"),
        ("images/generations", {"prompt": "x", "model": "../../etc"}, 404, "model", "not served"),
        ("images/generations", {"prompt": "x", "lora": "/etc"}, 400, "lora", "not permitted"),
        ("images/generations", {"prompt": "x", "response_format": "url"}, 400, "response_format", "b64_json"),
        ("images/generations", {"prompt": "x", "max_codes": 10_000}, 400, None, "tokens asked for"),
        ("images/generations", {"prompt": "\ud800"}, 400, "prompt", "unicode"),
        (
            "images/generations",
            {"prompt": "x", "num_inference_steps": 101},
            400,
            "num_inference_steps",
            "100",
        ),
        ("images/generations", {"prompt": "x", "upscale": 4}, 400, "upscale", "no upscaler"),
        ("images/generations", {"prompt": "x", "stream": True, "upscale": 4}, 400, "upscale", "no upscaler"),
        ("tokenize", {"image": "file:///etc/passwd"}, 400, "image", "opens no addresses"),
        ("tokenize", {"image": "data:image/png;base64,%%"}, 400, "image", "base64"),
        ("tokenize", {"image": "data:image/png;base64,AAAA"}, 400, "image", "not an image"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "hi"}]},
            400,
            "messages",
            "no image",
        ),
        ("chat/completions", {"messages": []}, 400, "messages", "at least 1"),
    ],
)
def test_errors_have_openais_form(server, path, body, status, param, part):
    answer = httpx.post(f"{server.url}/v1/{path}", content=json.dumps(body), headers=JSON)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert part.lower() in error["message"].lower()
    assert error["param"] == param


JSON = {"Content-Type": "application/json"}


def test_other_mistakes_have_it_too(server):
    post = lambda path, **more: httpx.post(f"{server.url}{path}", **more)  # noqa: E731
    assert post("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{server.url}/v1/images/generations").status_code == 405
    assert post("/v1/images/generations", content=b"{", headers=JSON).status_code == 400
    assert post("/v1/images/generations", content=b"[" * 50_000, headers=JSON).status_code == 400
    large = post("/v1/images/generations", content=b" " * 200_001, headers=JSON)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    chunked = post("/v1/images/generations", content=iter([b" " * 150_000] * 2), headers=JSON)
    assert (chunked.status_code, "error" in chunked.json()) == (413, True)
    wide = png_bytes(Image.new("RGB", (300, 300)))
    form = {"data": {"prompt": "x"}, "files": {"image": ("a.png", wide)}}
    assert "90,000 pixels" in post("/v1/images/edits", **form).json()["error"]["message"]
    form = {"data": {"prompt": "x"}, "files": {"image": ("a.png", b"nonsense")}}
    assert post("/v1/images/edits", **form).json()["error"]["code"] == "invalid_image"
    assert post("/v1/images/edits", data={"prompt": "x"}).json()["error"]["param"] == "image"


def test_a_client_that_goes_away_is_forgotten(server):
    engine = server.serving.engine
    body = json.dumps({"prompt": "a red apple", "n": 4, "num_inference_steps": 90}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: engine.running)
    drawn = engine.images_drawn
    wait_for(lambda: not engine.running and not engine.queued)
    assert engine.images_drawn < drawn + 4


def test_a_full_queue_says_when_to_come_back(whole_model):
    with running(whole_model, queue_length=2, max_n=2, max_batch=1) as server:
        post = lambda number: httpx.post(  # noqa: E731
            f"{server.url}/v1/images/generations",
            json={"prompt": "a red apple", "n": 2, "seed": number, "num_inference_steps": 40},
            timeout=120,
        )
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(post, range(8)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        refused = answers[codes.index(429)]
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"


def test_keys_and_time(whole_model):
    with running(whole_model, api_keys=("secret", "other"), timeout=1, max_steps=1000) as server:
        url = f"{server.url}/v1/models"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Basic secret"}).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Bearer other"}).status_code == 200
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        answer = httpx.post(
            f"{server.url}/v1/images/generations",
            json={"prompt": "a red apple", "n": 10, "num_inference_steps": 1000},
            headers={"Authorization": "Bearer secret"},
            timeout=60,
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_a_stopping_server_finishes_what_runs(whole_model):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with running(whole_model) as server:
            body = {"prompt": "a red apple", "num_inference_steps": 30}
            url = f"{server.url}/v1/images/generations"
            answer = pool.submit(lambda: httpx.post(url, json=body, timeout=120))
            wait_for(lambda: server.serving.engine.running)
            begun = time.monotonic()
        assert answer.result().status_code == 200
        assert time.monotonic() - begun < 60
