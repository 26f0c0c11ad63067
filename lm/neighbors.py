"""Soft targets: part of a code's target goes to the codes whose vectors lie nearest to its own.

Legend: C codes, W width of a code vector, K neighbors, V ids, N tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pictish.lm.config import NeighborsConfig
from pictish.lm.vocabulary import Vocabulary

_ROWS = 1024  # codes compared with all others at once


@dataclass(frozen=True, eq=False)
class Neighbors:
    """For each id the ids that share its target; all weights of an id that is no code are 0."""

    ids: Tensor  # (V, K)
    weights: Tensor  # (V, K), which sum to the share of a target that neighbors get

    def added(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What soft targets add to the cross entropies (N,) of logits (N, V); an ignored target adds 0.

        With the weights w_k of the neighbors n_k of a target y, the soft cross entropy is the plain one plus
        sum_k w_k (z_y - z_{n_k}), so that K + 1 logits a token are all it takes.
        """
        known = targets.clamp_min(0)
        weights = self.weights[known].masked_fill((targets < 0)[:, None], 0)
        near = logits.gather(1, self.ids[known])
        return (weights * (logits.gather(1, known[:, None]) - near)).sum(dim=1)


def neighbors_of(vectors: Tensor, vocabulary: Vocabulary, config: NeighborsConfig) -> Neighbors:
    """The `config.count` nearest others of each of the code vectors (C, W), weighted by distance.

    Weights are softmax(-d / temperature), d in units of the median distance from a code to its nearest other.
    ValueError for fewer codes than neighbors.
    """
    codes = len(vectors)
    if config.count >= codes:
        raise ValueError(
            f"objective.neighbors.count {config.count}: this tokenizer has {codes} codes; "
            f"{codes - 1} at most would fit"
        )
    vectors = vectors.float()
    numbers = torch.arange(codes, device=vectors.device)
    found = []
    for rows in numbers.split(_ROWS):
        distances = torch.cdist(vectors[rows], vectors)
        distances[torch.arange(len(rows), device=rows.device), rows] = torch.inf  # itself
        found.append(distances.topk(config.count, largest=False))
    nearest = torch.cat([one.values for one in found])  # (C, K), rising
    unit = nearest[:, 0].median().clamp_min(torch.finfo(nearest.dtype).tiny)
    weights = config.share * (-nearest / unit / config.temperature).softmax(dim=1)
    places = vocabulary.ids_of(numbers)
    ids = torch.zeros(vocabulary.size, config.count, dtype=torch.long, device=vectors.device)
    ids[places] = vocabulary.ids_of(torch.cat([one.indices for one in found]))
    spread = torch.zeros(vocabulary.size, config.count, device=vectors.device)
    spread[places] = weights
    return Neighbors(ids, spread)
