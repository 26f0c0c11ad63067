"""What the starter can do, on one page and in one image: runs commands and gathers their results.

Run from the checkout: python -m tools.demo_page docs/samples demo
Writes demo/index.html, which needs no other file, demo/sheet.png, and what the commands write.
"""

import base64
import html
import io
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pictish.data.images import load_image, png_bytes
from pictish.io.files import write_atomic
from pictish.pipelines.image_requests import slug

PROMPTS = (
    "a red apple",
    "yellow heart, noto style",
    "a smiling cat please",
    "draw me a blue book",
    "a woman health worker with dark skin",
    "the flag of Japan",
)
EDITS = (
    ("noto-woman-student.png", "make the skin tone dark"),
    ("noto-woman-student.png", "in twemoji style"),
    ("noto-woman-student.png", "turn her into a pilot"),
    ("fluent-saxophone.png", "in noto style"),
    ("fluent-fallen-leaf.png", "in twemoji style"),
    ("twemoji-globe.png", "do not change anything"),
)
QUESTIONS: tuple[tuple[str, str | None], ...] = (
    ("noto-woman-student.png", None),
    ("fluent-saxophone.png", None),
    ("twemoji-globe.png", None),
    ("noto-woman-student.png", "In which style is it drawn?"),
    ("fluent-fallen-leaf.png", "What is it?"),
    ("fluent-saxophone.png", "Is it a flag?"),
)
SEED = 1
TILE, GAP, NOTE, TITLE, COLUMNS = 96, 10, 36, 34, 6
INK, PAPER = "#1c1c1e", "white"


@dataclass(frozen=True)
class Shot:
    """Images to show side by side, what is written below them, and what made the last."""

    pictures: tuple[Path, ...]
    note: str
    commands: tuple[str, ...]


def main(samples: Path, out: Path) -> None:
    """Run everything and write the page and the sheet; a command that fails ends it."""
    sections = {
        "Images to codes and back": round_trip(samples, out),
        "Text to image": generated(out),
        "Edits": edited(samples, out),
        "Image to text": described(samples),
        "What the tokenizer keeps of a photograph": inspected(samples, out),
    }
    write_atomic(out / "index.html", page(sections).encode())
    write_atomic(out / "sheet.png", sheet(sections))
    print(f"\nOpen {out / 'index.html'}; {out / 'sheet.png'} shows the same in one image.")


def round_trip(samples: Path, out: Path) -> list[Shot]:
    """Every sample beside its reconstruction."""
    commands = [
        ["tokenize", str(samples), str(out / "tokens")],
        ["detokenize", str(out / "tokens"), str(out / "pictures")],
    ]
    for command in commands:
        run(command)
    shown = tuple(map(told, commands))
    originals = sorted(path for path in samples.iterdir() if path.suffix in (".jpg", ".png"))
    return [Shot((path, out / "pictures" / f"{path.stem}.png"), path.stem, shown) for path in originals]


def generated(out: Path) -> list[Shot]:
    """An image for each prompt."""
    command = ["generate", *PROMPTS, "--seed", str(SEED), "--out", str(out / "generated")]
    run(command)
    return [
        Shot((out / "generated" / f"{slug(prompt)}-{SEED}.png",), prompt, (told(command),))
        for prompt in PROMPTS
    ]


def edited(samples: Path, out: Path) -> list[Shot]:
    """Samples beside what an instruction made of them."""
    shots = []
    for name, instruction in EDITS:
        command = [
            "edit",
            str(samples / name),
            instruction,
            "--seed",
            str(SEED),
            "--out",
            str(out / "edited"),
        ]
        run(command)
        made = out / "edited" / f"{slug(Path(name).stem)}-{slug(instruction)}-{SEED}.png"
        shots.append(Shot((samples / name, made), instruction, (told(command),)))
    return shots


def described(samples: Path) -> list[Shot]:
    """Captions of samples, and answers to questions."""
    shots = []
    for name, question in QUESTIONS:
        command = ["describe", str(samples / name), *([question] if question else [])]
        answer = run(command).strip()
        shots.append(
            Shot((samples / name,), f"{question} {answer}" if question else answer, (told(command),))
        )
    return shots


def inspected(samples: Path, out: Path) -> list[Shot]:
    """The tokenizer's view of a photograph."""
    command = ["inspect", str(samples / "astronaut.jpg"), "--out", str(out / "astronaut.png")]
    run(command)
    return [Shot((out / "astronaut.png",), "kept patches and the reconstruction", (told(command),))]


def run(command: Sequence[str]) -> str:
    """What a pictish command prints; SystemExit where it fails."""
    print(f"$ {told(command)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "pictish", *command], stdout=subprocess.PIPE, text=True, check=False
    )
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(f"{told(command)} failed with {done.returncode}")
    return done.stdout


def told(command: Sequence[str]) -> str:
    """A command as a user would type it."""
    return shlex.join(["pictish", *command])


def page(sections: dict[str, list[Shot]]) -> str:
    """HTML with its images inside, without scripts."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>pictish: the starter</title>",
        "<style>body{font:16px/1.4 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
        ".shots{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;max-width:20em}"
        "img{height:8em;max-width:100%;object-fit:contain;border:1px solid #ddd;margin-right:2px}"
        ".wide figure,.wide img{height:auto;max-width:100%}"
        "pre{background:#f4f4f4;padding:.5em;overflow-x:auto}</style>",
        "<h1>What the starter makes</h1><p>Everything below was made by the shipped weights with "
        "the commands shown. Nothing was selected.</p>",
    ]
    for title, shots in sections.items():
        wide = len(shots) == 1
        parts.append(f"<h2>{html.escape(title)}</h2><div class={'wide' if wide else 'shots'}>")
        for shot in shots:
            pictures = "".join(
                f'<img alt="{html.escape(shot.note)}" src="{inside(path, 1200 if wide else 192)}">'
                for path in shot.pictures
            )
            parts.append(f"<figure>{pictures}<figcaption>{html.escape(shot.note)}</figcaption></figure>")
        commands = dict.fromkeys(command for shot in shots for command in shot.commands)
        parts.append(f"</div><pre>{html.escape(chr(10).join(commands))}</pre>")
    return "\n".join(parts) + "\n"


def inside(path: Path, longest: int) -> str:
    """A data URL of an image, at most this many pixels."""
    picture = load_image(path)
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    blob = io.BytesIO()
    picture.save(blob, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(blob.getvalue()).decode()}"


def sheet(sections: dict[str, list[Shot]]) -> bytes:
    """PNG: sections of many as rows of images with their words, those of one as wide as they get."""
    column = 2 * TILE + GAP
    width = GAP + COLUMNS * (column + GAP)
    parts = []
    for title, shots in sections.items():
        parts.append(heading(title, width))
        if len(shots) == 1:
            wide = load_image(shots[0].pictures[0])
            wide.thumbnail((width, wide.height), Image.Resampling.LANCZOS)
            parts.append(wide)
            continue
        singles = all(len(shot.pictures) == 1 for shot in shots)
        per_row = 2 * COLUMNS if singles and len(shots) > COLUMNS else COLUMNS
        for start in range(0, len(shots), per_row):
            parts.append(row_of(shots[start : start + per_row], width, (width - GAP) // per_row))
    drawn = Image.new("RGB", (width, sum(part.height for part in parts) + GAP), PAPER)
    top = 0
    for part in parts:
        drawn.paste(part, (0, top))
        top += part.height
    return png_bytes(drawn.quantize(256, dither=Image.Dither.FLOYDSTEINBERG))


def heading(title: str, width: int) -> Image.Image:
    """A section's title."""
    drawn = Image.new("RGB", (width, TITLE), PAPER)
    font = ImageFont.load_default(19)
    ImageDraw.Draw(drawn).text((GAP, TITLE / 2), title, INK, font, anchor="lm")
    return drawn


def row_of(shots: Sequence[Shot], width: int, column: int) -> Image.Image:
    """Shots side by side, their words below."""
    drawn = Image.new("RGB", (width, TILE + NOTE), PAPER)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(13)
    for number, shot in enumerate(shots):
        left = GAP + number * column
        for place, path in enumerate(shot.pictures):
            picture = load_image(path)
            picture.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
            drawn.paste(picture, (left + place * (TILE + 2), (TILE - picture.height) // 2))
        note = textwrap.wrap(shot.note, column // 7)[:2]
        pen.multiline_text((left, TILE + 2), "\n".join(note), INK, font)
    return drawn


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m tools.demo_page SAMPLES OUT")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
