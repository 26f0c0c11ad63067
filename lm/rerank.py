"""Reranking: which of several drawings the model itself would caption with the words of the prompt.

A model that is trained to caption as well as to draw can score its own samples, by log p(words | image), as
DALL-E (arXiv 2102.12092, section 2.6) ranks samples by CLIP.

Legend: K images.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pictish.lm.grammar import ImageSegment
from pictish.lm.model import UnifiedModel
from pictish.lm.objective import shifted
from pictish.lm.packing import IGNORED, pack
from pictish.lm.preference import log_probabilities
from pictish.lm.sequence import Codes, Text, build
from pictish.lm.vocabulary import text_ids
from pictish.training.isolation import inference

ROWS = 8  # images that are scored at a time


@inference
def caption_scores(model: UnifiedModel, images: Sequence[ImageSegment], words: Sequence[str]) -> Tensor:
    """Log-likelihood (K,) of `words`, read one after the other, as the caption of each image.

    The shapes depend on images and words alone. The model is autoregressive.
    """
    assert model.masked is None, "a masked model has no likelihood in one forward"
    encode = partial(text_ids, model.text_tokenizer)
    texts = [Text(one.strip(), learn=True) for one in words]
    documents = [
        build("caption", [_codes(image), *texts], model.vocabulary, encode, model.eos) for image in images
    ]
    packed = shifted(pack([[document] for document in documents], max(map(len, documents))))
    device = next(model.parameters()).device
    scores = []
    for part in packed.split(ROWS):
        part = part.to(device)
        # not `at_targets`, which sets a hook: other threads may read with this model
        logits = model(part).logits[part.targets != IGNORED]
        scores.append(log_probabilities(logits, part.targets).sum(dim=1))
    return torch.cat(scores)


def candidate_generators(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """One for each of `count` candidates: `generator`, freshly seeded, and others that its seed gives."""
    others = [np.random.SeedSequence([generator.initial_seed(), number]) for number in range(1, count)]
    seeds = [int(other.generate_state(1, np.uint64)[0]) for other in others]
    return [generator, *(torch.Generator().manual_seed(seed) for seed in seeds)]


def _codes(image: ImageSegment) -> Codes:
    return Codes(np.array(image.codes), None if image.cells is None else np.array(image.cells))
