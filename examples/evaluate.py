"""Measures what images lose on the way through their tokens, at several token counts.

    python examples/evaluate.py IMAGES [MODEL]

Original and decoded images are compared at 64 x 64 pixels. `pictish evaluate tokenizer` adds baselines,
confidence intervals and charts.
"""

import sys
from pathlib import Path

import numpy as np

import pictish
from pictish.data.images import fit_square
from pictish.evaluation.metrics import psnr, ssim

BUDGETS = (4, 8, 16, None)  # tokens per image; None lets the tokenizer decide


def main(folder: str, model: str = "starter") -> None:
    pipe = pictish.Pipeline.from_pretrained(model)
    images = [pictish.load_image(path) for path in sorted(Path(folder).iterdir())]
    originals = np.stack([fit_square(image, 64) for image in images])  # (B, 64, 64, 3) uint8
    print("tokens  bits/pixel  PSNR (dB)  SSIM")
    for budget in BUDGETS:
        tokens = pipe.tokenize(images, budget=budget)
        decoded = np.stack([fit_square(image, 64) for image in pipe.detokenize(tokens)])
        count, bits = np.mean([(len(one), one.bits_per_pixel) for one in tokens], axis=0)
        quality = psnr(decoded, originals).mean(), ssim(decoded, originals).mean()
        print(f"{count:6.1f}  {bits:10.3f}  {quality[0]:9.2f}  {quality[1]:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
