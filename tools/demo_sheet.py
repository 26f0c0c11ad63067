"""Draws docs/demo.png: the sample pictures, the patches that were kept, and what came back from their codes.

Run from the checkout: python -m tools.demo_sheet docs/samples docs/demo.png
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pictish.data.files import write_atomic
from pictish.data.images import find_images, load_image, png_bytes
from pictish.data.tokens import TokenizedImage
from pictish.evaluation.drawing import crop_cell
from pictish.pipelines.reconstruct import Reconstructor

TILE, GAP, LABEL, NOTE = 128, 10, 96, 22
INK, PAPER = "#1c1c1e", "white"


def main(samples: Path, out: Path) -> None:
    """One column a picture of the folder `samples`; three rows."""
    reconstructor = Reconstructor.from_folder("starter")
    images = [load_image(file.path) for file in find_images([samples])]
    tokens = reconstructor.tokenizer.tokenize(images)
    back = reconstructor(tokens, size=TILE)
    sheet = Image.new("RGB", (LABEL + len(images) * (TILE + GAP), 3 * (TILE + GAP) + NOTE), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for row, label in enumerate(("picture", "kept", "decoded")):
        pen.text((8, row * (TILE + GAP) + TILE / 2), label, INK, font, anchor="lm")
    for column, (image, token, decoded) in enumerate(zip(images, tokens, back, strict=True)):
        small = image.resize(decoded.size, Image.Resampling.LANCZOS)
        left = LABEL + column * (TILE + GAP)
        for row, tile in enumerate((small, kept(small, token), decoded)):
            place = (left + (TILE - tile.width) // 2, row * (TILE + GAP) + (TILE - tile.height) // 2)
            sheet.paste(tile, place)
        text = f"{len(token)} codes"
        pen.text((left + TILE / 2, 3 * (TILE + GAP) + 2), text, INK, font, anchor="mt")
    write_atomic(out, png_bytes(sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)))


def kept(picture: Image.Image, token: TokenizedImage) -> Image.Image:
    """The picture with everything but the kept patches washed out."""
    washed = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, PAPER), 0.8)
    assert token.cells is not None
    for cell in token.cells:
        row, column = divmod(int(cell), token.grid[1])
        patch = crop_cell(picture, int(cell), token.grid)
        washed.paste(patch, (column * picture.width // token.grid[1], row * picture.height // token.grid[0]))
    return washed


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m tools.demo_sheet SAMPLES OUT.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
