"""Edits an image again and again: each instruction changes the result of the one before.

    python examples/edit_loop.py IMAGE OUT "make it green" "make it larger" ... [--model MODEL]

Writes OUT/0.png (the source as the model sees it), OUT/1.png, ...
"""

import argparse
from pathlib import Path

import pictish


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("image")
    parser.add_argument("out")
    parser.add_argument("instructions", nargs="+")
    parser.add_argument("--model", default="starter")
    arguments = parser.parse_args()

    pipe = pictish.Pipeline.from_pretrained(arguments.model)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    image = pipe.detokenize(pipe.tokenize(arguments.image))
    image.save(out / "0.png")
    for number, instruction in enumerate(arguments.instructions, 1):
        image = pipe.edit(image, instruction, seed=number)
        image.save(out / f"{number}.png")
        print(f"{instruction}: {pipe.describe(image)!r}")


if __name__ == "__main__":
    main()
