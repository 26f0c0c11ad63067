"""What the tokenizer is trained on (arXiv 2309.04669, equation 5).

Legend: B pictures, N cells, F feature channels.
"""

import torch.nn.functional as F
from torch import Tensor


def cosine_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity of each cell's features (B, N), from (B, N, F) and (B, N, F)."""
    return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)
