"""Generates an image with a loop of its own in plain transformers.

    python examples/generation_loop.py "a red apple" apple.png [MODEL]

The language model is an ordinary causal LM whose vocabulary contains image codes. pictish only says which
token ids may come next and at which positions they stand, and decodes the codes.
"""

import math
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pictish
from pictish.io.model_folder import locate_model
from pictish.lm.grammar import DecodingState, legal_ids, one_image
from pictish.lm.vocabulary import text_ids


@torch.inference_mode()
def main(prompt: str, out: str, model: str = "starter") -> None:
    pipe = pictish.Pipeline.from_pretrained(model)
    language = AutoModelForCausalLM.from_pretrained(locate_model(model, "lm"), dtype=torch.float32)
    text = AutoTokenizer.from_pretrained(locate_model(model, "lm"))
    vocabulary, grid = pipe.language_model.vocabulary, pipe.tokenizer.grid
    state = DecodingState(vocabulary, one_image(math.prod(grid), cells=vocabulary.cells), inside=True)
    legal = legal_ids(vocabulary, language.config.vocab_size)
    ids, cache = torch.tensor([[*text_ids(text, prompt), vocabulary.begin]]), None
    position = -1
    while state.state is not None:
        positions = position + vocabulary.strides(ids).cumsum(dim=1)
        position = int(positions[0, -1])
        output = language(ids, position_ids=positions, cache=cache, use_cache=True)
        logits, cache = output.logits[0, -1], output.cache
        logits = logits.masked_fill(~legal.of([state])[0], -torch.inf)
        ids = torch.multinomial(logits.softmax(dim=-1), 1)[None]  # (1, 1): only the new id is read next
        state.take(int(ids))
    (image,) = state.segments
    cells = None if image.cells is None else np.array(image.cells)
    origin = pipe.tokenizer.fingerprint, pipe.tokenizer.codebook_size
    tokens = pictish.TokenizedImage(np.array(image.codes), cells, grid, (512, 512), *origin)
    pipe.detokenize(tokens).save(out)
    print(f"{out}: {len(tokens)} codes")


if __name__ == "__main__":
    main(*sys.argv[1:])
