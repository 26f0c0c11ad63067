"""Tokenizes a folder of images and prints how small they became.

    python examples/tokenize_folder.py IMAGES OUT [MODEL]

Each image becomes OUT/name.tokens; an image that cannot be read is named and skipped, and the exit code is
then 1. `pictish tokenize` does the same for large folders, with decoding processes, a manifest and resuming.
"""

import sys
from pathlib import Path

import pictish


def main(images: str, out: str, model: str = "starter") -> int:
    pipe = pictish.Pipeline.from_pretrained(model)
    Path(out).mkdir(parents=True, exist_ok=True)
    skipped = 0
    for path in sorted(Path(images).iterdir()):
        try:
            tokens = pipe.tokenize(path)
        except (ValueError, OSError) as error:
            print(f"skipped {path.name}: {error}", file=sys.stderr)
            skipped += 1
            continue
        Path(out, path.stem + ".tokens").write_bytes(tokens.to_bytes())
        print(f"{path.name}: {len(tokens)} tokens, {tokens.bits_per_pixel:.3f} bits per pixel")
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
