"""The page of `pictish ui` in a real browser: each tab from a click to its result, on a tiny model."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pictish.data.images import png_bytes
from pictish.data.provenance import read_origin
from pictish.ui.page import FILES, add_page
from tests.serve.running import Running, running
from tests.shards import told_picture
from tests.whole import write_adaptor

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def server(whole_model) -> Iterator[Running]:
    with running(whole_model) as found:
        add_page(found.app)
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def page(server, browser) -> Iterator[Page]:
    """The page just opened. At the end: no error was logged, and nothing was asked of anybody else."""
    found = browser.new_page(viewport={"width": 1200, "height": 900})
    found.set_default_timeout(120_000)
    said: list[str] = []
    addresses: list[str] = []
    found.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("request", lambda request: addresses.append(request.url))
    found.goto(server.url)
    yield found
    found.close()
    assert said == []
    assert [one for one in addresses if not one.startswith((server.url, "blob:"))] == []


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "disc.png"
    path.write_bytes(png_bytes(told_picture("red", "disc", 64)))
    return path


def draw(page: Page, prompt: str = "the sun", count: int = 2) -> None:
    page.fill("#prompt", prompt)
    page.fill("#count", str(count))
    page.click("#draw-form [type=submit]")
    page.wait_for_selector("#draw-stop", state="visible")
    page.wait_for_selector("#draw-stop", state="hidden")
    assert page.locator("#drawn .tile a.button").count() == count, page.inner_text("#draw-said")


def width_of(page: Page, selector: str) -> Any:
    return page.eval_on_selector(selector, "image => image.naturalWidth")


class TestInABrowser:
    pytestmark = in_browser

    def test_draw_and_take_the_download_back_in(self, page, tmp_path):
        page.fill("#style", "noto")
        page.fill("#seed", "7")
        draw(page)
        assert width_of(page, "#drawn .tile img") > 0
        with page.expect_download() as download:
            page.locator("#drawn .tile a.button").nth(1).click()
        assert download.value.suggested_filename == "the-sun-noto-style.png"
        path = tmp_path / "drawn.png"
        download.value.save_as(path)
        origin = read_origin(path)
        assert (origin.prompt, origin.seed) == ("the sun, noto style", 8)

        page.reload()
        page.click("#tab-edit")
        page.set_input_files("#edit-source input", path)
        page.wait_for_selector("#edit-source canvas")
        assert (
            page.inner_text("#edit-said") == "The file says how it was drawn; the Draw tab has its settings."
        )
        page.click("#tab-draw")
        values = [page.input_value(name) for name in ("#prompt", "#style", "#seed", "#count", "#best-of")]
        assert values == ["the sun", "noto", "8", "1", "1"]
        draw(page, count=1)
        with page.expect_download() as download:
            page.click("#drawn .tile a.button")
        download.value.save_as(path)
        assert read_origin(path).tokens == origin.tokens

    def test_a_drawing_can_be_stopped_and_errors_are_shown(self, page):
        page.fill("#prompt", " x ")
        page.fill("#count", "9")
        page.click("#draw-form [type=submit]")
        page.click("#draw-stop")
        page.wait_for_selector("#draw-stop", state="hidden")
        if page.inner_text("#draw-said") == "Stopped.":  # else it was faster
            assert page.locator(".tile.busy").count() == 0
        page.click("#tab-edit")
        page.fill("#instruction", "make it green")
        page.click("#edit-form [type=submit]")
        page.wait_for_selector("#edit-said.error")
        assert page.inner_text("#edit-said") == "Choose an image first."

    def test_edit_a_region(self, page, picture):
        page.click("#tab-edit")
        page.set_input_files("#edit-source input", picture)
        box = page.wait_for_selector("#edit-source canvas").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
        painted = "canvas => canvas.getContext('2d').getImageData(32, 32, 1, 1).data[3]"
        assert page.eval_on_selector("#edit-source canvas", painted) == 255
        page.fill("#instruction", "make it green")
        page.fill("#edit-count", "1")
        page.click("#edit-form [type=submit]")
        page.wait_for_selector("#edited a.button")
        assert width_of(page, "#edited img") > 0
        page.click("#edited button:has-text('Edit')")  # and again
        assert page.get_attribute("#edit-source img", "alt") == "make it green"

    def test_describe(self, page, picture):
        page.click("#tab-describe")
        page.set_input_files("#describe-source input", picture)
        page.wait_for_selector("#describe-source img")
        page.fill("#question", "which colour?")
        page.press("#question", "Enter")
        page.wait_for_selector("#talk .answer:not(:empty)")
        page.wait_for_selector("#describe-stop", state="hidden")
        assert page.inner_text("#talk .asked") == "which colour?"
        assert not page.locator("#describe-said.error").count()

    def test_look_inside(self, page, picture, server):
        page.click("#tab-inside")
        page.set_input_files("#inside-source input", picture)
        page.wait_for_selector("#rebuilt img")
        cells = server.serving.pipeline.tokenizer.cells
        assert page.locator("#kept button").count() == cells
        whole = page.get_attribute("#rebuilt img", "src")
        page.fill("#codes", "3")
        page.wait_for_selector("#rebuilt img[alt='Reconstruction from 3 codes']")
        assert page.get_attribute("#rebuilt img", "src") != whole
        assert page.locator("#kept button:not(.dropped)").count() == 3
        page.locator("#kept button:not(.dropped)").first.click()
        before = int(page.inner_text("#code-title").removeprefix("Code "))
        assert page.locator("#code-patches canvas").count() >= 1
        other = (before + 1) % server.serving.pipeline.tokenizer.codebook_size
        page.fill("#code-new", str(other))
        page.click("#code-swap")
        page.wait_for_selector("#kept .changed")
        assert page.inner_text("#code-title") == f"Code {other}"
        page.click("#code-erase")
        page.wait_for_selector("#rebuilt img[alt='Reconstruction from 2 codes']")
        page.click("#undo")
        page.click("#undo")
        page.wait_for_selector("#rebuilt img[alt='Reconstruction from 3 codes']")
        assert page.inner_text("#code-title") == f"Code {before}"
        page.click("#keep")
        page.wait_for_selector("#strip button[title='disc, 3 codes']")

    def test_look_inside_a_drawn_image_whose_codes_may_have_no_cells(self, page, server):
        draw(page, count=1)
        page.click("#drawn button:has-text('Look inside')")
        page.wait_for_selector("#rebuilt img")
        assert page.locator("#kept button").count() == server.serving.pipeline.tokenizer.cells
        assert page.locator("#code-list button").count() == page.locator("#kept button:not(.dropped)").count()

    def test_draw_with_an_adaptor_and_take_the_download_back_in(self, browser, whole_model, tmp_path):
        with running(whole_model, {"red": write_adaptor(whole_model, tmp_path / "red", 1)}) as found:
            add_page(found.app)
            page = browser.new_page()
            page.set_default_timeout(120_000)
            page.goto(found.url)
            page.select_option("#model-choice", "red")
            draw(page, count=1)
            with page.expect_download() as download:
                page.click("#drawn .tile a.button")
            path = tmp_path / "drawn.png"
            download.value.save_as(path)
            assert read_origin(path).adaptor == "red"
            page.reload()
            page.wait_for_selector("#models", state="visible")
            assert page.input_value("#model-choice") == ""
            page.click("#tab-edit")
            page.set_input_files("#edit-source input", path)
            page.wait_for_selector("#edit-source canvas")
            assert page.input_value("#model-choice") == "red"
            page.close()

    def test_by_keyboard_and_with_labels(self, page):
        page.focus("#tab-draw")
        page.keyboard.press("ArrowLeft")
        assert page.is_visible("#inside")
        page.keyboard.press("ArrowRight")
        assert page.is_visible("#draw")
        unnamed = """() => [...document.querySelectorAll('input:not([hidden]), textarea, select, button')]
            .filter((one) => !one.labels?.length && !one.textContent.trim() && !one.ariaLabel)
            .map((one) => one.outerHTML)"""
        assert page.evaluate(unnamed) == []
        page.focus("#prompt")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#drawn .tile")
        page.click("#draw-stop")

    @pytest.mark.parametrize("width", [320, 390])
    def test_on_a_phone_nothing_is_wider_than_the_page(self, page, width):
        page.set_viewport_size({"width": width, "height": 800})
        for tab in ("draw", "edit", "describe", "inside"):
            page.click(f"#tab-{tab}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab

    def test_dark_mode(self, page):
        background = "() => getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(background)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(background) != light


def test_files_forbid_everything_from_elsewhere(server):
    names = sorted(path.name for path in FILES.iterdir())
    assert {"index.html", "main.js", "style.css"} <= set(names)
    for name in ("", *names):
        answer = httpx.get(f"{server.url}/{name}")
        assert answer.status_code == 200
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' blob:;")
    text = "".join((FILES / name).read_text("utf-8") for name in names)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # no address: a name
    assert httpx.get(f"{server.url}/../page.py").status_code == 404
    assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "tiny"
