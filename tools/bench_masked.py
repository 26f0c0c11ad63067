"""Seconds an image: a masked language model at several numbers of steps against an autoregressive one.

    python -m tools.bench_masked --masked runs/lm-masked --autoregressive runs/lm --model starter

Tokens of `--batch` images are drawn in turns, decoders left out, and the medians of `--rounds` printed, for
each of the caches asked for. `--masked` and `--autoregressive` are folders of language models, or runs,
for the tokenizer of `--model`. Run it on a machine that does nothing else.
"""

import argparse
import statistics
import time
from functools import partial

from pictish.lm.config import MaskedCache
from pictish.lm.model import UnifiedModel
from pictish.pipelines.assemble import with_parts
from pictish.pipelines.drawing import generators
from pictish.pipelines.language import Language
from pictish.pipelines.settings import GenerationConfig
from pictish.pipelines.text_to_image import TextToImage

PROMPT = "a red apple"
CACHES = {"none": MaskedCache(), "dual": MaskedCache(kind="dual"), "interval": MaskedCache(kind="interval")}


def with_steps(model: UnifiedModel, steps: int, cache: MaskedCache) -> None:
    """Have a masked model draw in this number of steps."""
    masked = model.defaults.filling
    pictures = masked.pictures.model_copy(update={"steps": steps, "cache": cache})
    masked = masked.model_copy(update={"pictures": pictures})
    model.defaults = model.defaults.model_copy(update={"masked": masked})


def draw(drawer: TextToImage, batch: int, seed: int) -> None:
    """Tokens of a batch of images."""
    drawer.tokens([[PROMPT]] * batch, generators(range(seed, seed + batch)), GenerationConfig())


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masked", required=True, metavar="FOLDER")
    parser.add_argument("--autoregressive", metavar="FOLDER")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--cache", nargs="+", choices=CACHES, default=["none"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    drawers = {}
    for name, folder in (("masked", asked.masked), ("autoregressive", asked.autoregressive)):
        if folder is not None:
            with with_parts(asked.model, {"lm": folder}) as model:
                drawers[name] = TextToImage(Language.from_folder(model))
    work = {}
    for cache in asked.cache:
        for steps in asked.steps:
            work[f"masked, {steps} steps, cache {cache}"] = (drawers["masked"], steps, CACHES[cache])
    if "autoregressive" in drawers:
        work["autoregressive"] = (drawers["autoregressive"], None, CACHES["none"])
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(asked.rounds + 1):
        for name, (drawer, steps, cache) in work.items():
            if steps is not None:
                with_steps(drawer.language.model, steps, cache)
            run = partial(draw, drawer, asked.batch, number * asked.batch)
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append((time.perf_counter() - start) / asked.batch)
    slowest = statistics.median(seconds["autoregressive"]) if "autoregressive" in work else None
    for name, each in seconds.items():
        median = statistics.median(each)
        ratio = "" if slowest is None else f"   {slowest / median:5.2f} times as fast"
        print(f"{name:36} {median:7.3f} s a picture{ratio}")


if __name__ == "__main__":
    main()
