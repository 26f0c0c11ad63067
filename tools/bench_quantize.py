"""Size, speed and agreement of a language model as float32, bfloat16 and quantized.

    python -m tools.bench_quantize [--model MODEL] [--pictures FOLDER] [--count N]

Agreement is the share of ids (text and codes) that are the likeliest ones of float32 as well, given the same
ids before them: of a drawing and a caption of each image. Printed as a table in Markdown.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pictish.data.images import find_images, load_image
from pictish.lm.model import UnifiedModel
from pictish.lm.quantize import quantize, size_of
from pictish.lm.sequence import Codes, Document, build, caption, drawing
from pictish.lm.vocabulary import text_ids
from pictish.tokenizer.dynamic import Tokenizer

WAYS = ("float32", "bfloat16", "int8", "int4")


def documents(model: UnifiedModel, tokenizer: Tokenizer, paths: Sequence[Path]) -> list[Document]:
    """A drawing and a caption of each image, with its file name as words."""
    encode = partial(text_ids, model.text_tokenizer)
    made = []
    for path, tokens in zip(paths, tokenizer.tokenize([load_image(path) for path in paths]), strict=True):
        words, codes = path.stem.replace("-", " "), Codes(tokens.ids, tokens.cells)
        made.append(build("drawing", drawing(words, codes), model.vocabulary, encode, model.eos))
        made.append(build("caption", caption(codes, words), model.vocabulary, encode, model.eos))
    return made


def load(folder: str, way: str, device: str) -> UnifiedModel:
    """The model in one of the `WAYS`."""
    dtype = torch.bfloat16 if way == "bfloat16" else torch.float32
    model = UnifiedModel.from_folder(folder, device, dtype)
    if way in ("int8", "int4"):
        quantize(model.language, way)  # type: ignore[arg-type]
    return model


@torch.inference_mode()
def likeliest(model: UnifiedModel, made: Sequence[Document], device: str) -> tuple[list[Tensor], float]:
    """The likeliest next id at each place of each document, and ids a second, one document at a time."""
    found = []
    ids = [torch.from_numpy(document.ids)[None].to(device) for document in made]
    model.language(input_ids=ids[0])
    begun = time.perf_counter()
    for row in ids:
        found.append(model.language(input_ids=row).logits[0].argmax(dim=-1).cpu())
    return found, sum(map(len, found)) / (time.perf_counter() - begun)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--pictures", type=Path, default=Path("docs/samples"))
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    settings = parser.parse_args()
    paths = [file.path for file in find_images([settings.pictures])][: settings.count]
    tokenizer = Tokenizer.from_folder(settings.model, settings.device)
    print("| weights | MB | ids a second | ids as float32 |\n|---|---|---|---|")
    truth: list[Tensor] = []
    for way in WAYS:
        model = load(settings.model, way, settings.device)
        found, speed = likeliest(model, documents(model, tokenizer, paths), settings.device)
        truth = truth or found
        same = sum(int((a == b).sum()) for a, b in zip(found, truth, strict=True))
        share = same / sum(map(len, truth))
        print(f"| {way} | {size_of(model.language) / 1e6:.1f} | {speed:.0f} | {100 * share:.1f} % |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
