"""The demo's page and sheet show what commands made, and nothing from elsewhere."""

import html
import io
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tools import demo_page


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    names = {name for name, _ in (*demo_page.EDITS, *demo_page.QUESTIONS)} | {"astronaut.jpg"}
    for number, name in enumerate(sorted(names)):
        Image.new("RGB", (40, 30), (40 * number, 90, 200)).save(folder / name)
    return folder


def pretend(command: list[str]) -> str:
    """What each command of the demo leaves behind."""
    red = Image.new("RGB", (300, 150), "red")

    def save(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        red.save(path)

    match command:
        case ["detokenize", tokens, out]:
            for path in (Path(tokens).parent.parent / "samples").iterdir():
                save(Path(out) / f"{path.stem}.png")
        case ["generate", *prompts, "--seed", seed, "--out", out]:
            for prompt in prompts:
                save(Path(out) / f"{demo_page.slug(prompt)}-{seed}.png")
        case ["edit", image, instruction, "--seed", seed, "--out", out]:
            save(Path(out) / f"{demo_page.slug(Path(image).stem)}-{demo_page.slug(instruction)}-{seed}.png")
        case ["inspect", _, "--out", out]:
            save(Path(out))
        case ["describe", *_]:
            return "a <b>fish</b>\n"
    return ""


def test_the_page_needs_no_other_file_and_names_every_command(samples, tmp_path, monkeypatch):
    commands: list[list[str]] = []

    def run(command):
        commands.append(list(command))
        return pretend(command)

    monkeypatch.setattr(demo_page, "run", run)
    demo_page.main(samples, tmp_path / "demo")
    page = (tmp_path / "demo" / "index.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    originals = len(list(samples.iterdir()))
    assert len(sources) == 2 * originals + len(demo_page.PROMPTS) + 2 * len(demo_page.EDITS) + (
        len(demo_page.QUESTIONS) + 1
    )
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "href" not in page
    assert "<script" not in page
    reported = html.unescape("\n".join(re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL))).splitlines()
    assert reported == [shlex.join(["pictish", *command]) for command in commands]
    assert "a &lt;b&gt;fish&lt;/b&gt;" in page
    assert "<b>" not in page
    sheet = Image.open(io.BytesIO((tmp_path / "demo" / "sheet.png").read_bytes()))
    assert sheet.width > 1000
    colours = {colour for _, colour in sheet.convert("RGB").getcolors(10_000)}
    assert (255, 0, 0) in colours, "what was made is on the sheet"


def test_a_command_that_fails_ends_the_demo(capsys):
    with pytest.raises(SystemExit, match="failed with 2"):
        demo_page.run(["describe", "there-is-no-such.png"])
    assert "$ pictish describe there-is-no-such.png" in capsys.readouterr().out
