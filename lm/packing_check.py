"""Whether an architecture can be trained on packed rows: tried before training, on made-up documents.

Legend: L tokens, V ids.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pictish.io.files import one_line
from pictish.lm.model import UnifiedModel
from pictish.lm.packing import pack
from pictish.lm.sequence import Document
from pictish.lm.vocabulary import Vocabulary


@torch.no_grad()
def check_packing(model: UnifiedModel, length: int) -> None:
    """ValueError naming the architecture when rows of `length` packed documents would be learned wrongly.

    Two short documents in a row must get the logits that each gets alone, and an id must not change those
    before it; in a masked model it must, those of its own document. Linear attention carries what it saw into
    the next document; others refuse the mask.
    """
    config = model.language.config.get_text_config()
    name = config.model_type
    windows = (getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None))
    window = min((size for size in windows if size), default=length)
    if length > window and set(getattr(config, "layer_types", None) or ["?"]) != {"full_attention"}:
        raise ValueError(  # given a whole mask, transformers applies none of its own
            f"data.length {length} is more than {name}'s attention window of {window}, "
            f"which packed rows do not keep; {window} would fit"
        )
    training = model.training
    device = next(model.parameters()).device
    documents = [_made_up(model.vocabulary, start, size) for start, size in ((0, 7), (5, 6))]
    packed = pack([documents], 16).to(device)
    if model.masked is not None:
        packed = replace(packed, blocks=packed.documents)
    changed = replace(packed, ids=packed.ids.clone())
    changed.ids[0, 12] = packed.ids[0, 0]
    model.eval()
    try:
        together, other = model(packed).logits[0, :13], model(changed).logits[0, :12]
        alone = torch.cat([_alone(model, document, device) for document in documents])
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot be trained on packed rows ({one_line(error)})") from error
    finally:
        model.train(training)
    most = 1e-4 * alone.abs().max()
    kept = 12 if model.masked is None else 7  # ids before the one that was changed, or before its document
    if not ((together - alone).abs().max() <= most and (together[:kept] - other[:kept]).abs().max() <= most):
        raise ValueError(
            f"{name} cannot be trained on packed rows: its documents would see each other, or what follows"
        )
    if model.masked is not None and not ((together[7:12] - other[7:]).abs().amax(dim=1) > most).all():
        raise ValueError(f"{name} is causal whatever the mask says; a masked model needs one that is not")


def _alone(model: UnifiedModel, document: Document, device: torch.device) -> Tensor:
    """Logits (L, V) of one document in a row of its own."""
    embedded = model.embed(torch.from_numpy(document.ids)[None].to(device))
    if model.masked is None:
        return model.language(inputs_embeds=embedded, use_cache=False).logits[0]
    packed = pack([[document]], len(document)).to(device)
    return model(replace(packed, blocks=packed.documents)).logits[0]


def _made_up(vocabulary: Vocabulary, start: int, size: int) -> Document:
    ids = (start + np.arange(size) * 7) % vocabulary.size
    return Document("text", ids, np.ones(size, bool), np.zeros(0, np.int64), None)
