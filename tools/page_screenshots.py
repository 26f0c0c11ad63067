"""The two images of the page in README.md, taken of a running `pictish ui` in chromium.

python -m tools.page_screenshots http://127.0.0.1:8000 docs/images
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PROMPTS = (("a red apple", "noto"), ("the sun", "twemoji"))
SAMPLE = Path(__file__).parent.parent / "docs" / "samples" / "noto-woman-student.png"
PATIENCE = 600_000  # ms


def draw(page: Page, prompt: str, style: str) -> None:
    """Draw four images, and wait for them."""
    page.fill("#prompt", prompt)
    page.fill("#style", style)
    page.click("#draw-form [type=submit]")
    page.wait_for_selector("#draw-stop", state="visible")
    page.wait_for_selector("#draw-stop", state="hidden")


def save(page: Page, path: Path) -> None:
    """A screenshot as a small WebP."""
    image = Image.open(io.BytesIO(page.screenshot()))
    image.save(path, quality=85, method=6)
    print(f"{path}  {path.stat().st_size:,} bytes")


def main(url: str, out: str) -> None:
    """Write OUT/ui-draw.webp and OUT/ui-inside.webp."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1180, "height": 800})
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        for prompt, style in PROMPTS:
            draw(page, prompt, style)
        page.mouse.move(0, 0)
        save(page, folder / "ui-draw.webp")
        page.click("#tab-inside")
        page.set_input_files("#inside-source input", SAMPLE)
        page.wait_for_selector("#rebuilt img")
        codes = page.locator("#kept button:not(.dropped)")
        codes.nth(codes.count() // 2).click()
        page.mouse.move(0, 0)
        save(page, folder / "ui-inside.webp")
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
