"""Distances in the features of a frozen network: what tokenizers and decoders are trained and judged by.

Legend: B pictures, N cells, F feature channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity of each cell's features (B, N), of (B, N, F) twice (arXiv 2309.04669, eq. 5)."""
    return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)


def map_distances(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Distances (B,) of pictures by a network's maps (B, C, h, w) at several scales: 0 to 4.

    The form of LPIPS (arXiv 1801.03924) without its learned weights: channels are brought to unit length, the
    squared difference is summed over them and averaged over positions, then over scales.
    """
    scales = [
        (F.normalize(one.float(), dim=1) - F.normalize(other.float(), dim=1)).square().sum(1).mean((1, 2))
        for one, other in zip(ours, theirs, strict=True)
    ]
    return torch.stack(scales).mean(dim=0)
