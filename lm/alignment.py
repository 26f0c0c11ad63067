"""Heads that tie a language model's states to the code vectors of the image tokenizer, for training alone.

As in reAR (ICLR 2026): a code's vector is to be recovered from its embedding, and that of the next code
predicted from the states at three quarters of the depth.

Legend: B rows, L tokens, D width of the language model, C codes, W width of a code vector, V ids.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pictish.lm.packing import Packed
from pictish.lm.vocabulary import Vocabulary


class Alignment(nn.Module):
    """Both heads, and their error: one minus the cosine between what a head gives and the code's vector."""

    vectors: Tensor  # (V, W) of length 1; 0 for ids that are no codes

    def __init__(self, width: int, layers: int, code_vectors: Tensor, vocabulary: Vocabulary) -> None:
        """For a model of `width` D with `layers` layers, and the vectors (C, W) of all codes in order."""
        super().__init__()
        self.vocabulary = vocabulary
        self.depth = max(1, 3 * layers // 4)  # the number of layers below the second head
        size = code_vectors.shape[1]
        self.current, self.following = _head(width, size), _head(width, size)
        vectors = torch.zeros(vocabulary.size, size)
        codes = vocabulary.ids_of(torch.arange(vocabulary.codes))
        vectors[codes] = F.normalize(code_vectors.float(), dim=1).cpu()
        self.register_buffer("vectors", vectors, persistent=False)

    def forward(self, embedded: Tensor, deep: Tensor, packed: Packed) -> Tensor:
        """The sum over both heads and all their places, and how many places, (2,).

        `embedded` and `deep` (B, L, D) are states below the first layer and above `depth` of them. Places are
        codes to be learned: as they are read, unless read wrong, and as they are predicted.
        """
        read = self.vocabulary.is_code(packed.ids) & (packed.targets.roll(1, dims=1) == packed.ids)
        predicted = self.vocabulary.is_code(packed.targets)
        errors = torch.cat(
            [
                self._errors(self.current(embedded[read]), packed.ids[read]),
                self._errors(self.following(deep[predicted]), packed.targets[predicted]),
            ]
        )
        return torch.stack([errors.sum(), errors.new_tensor(float(len(errors)))])

    def _errors(self, found: Tensor, ids: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(found.float(), self.vectors[ids], dim=1)


def _head(width: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size))
