"""How far two sets of images are from each other in a network's features: FID and KID of small samples.

Legend: P and Q images, F features. Neither knows which image belongs to which.
"""

import numpy as np

SUBSET = 250
SUBSETS = 100


def frechet_distance(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """FID (arXiv 1706.08500): squared Fréchet distance of Gaussians with the moments of (P, F) and (Q, F).

    It falls with the number of images, so compare values of one number only. None below two images.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    one, other = _deviations(ours), _deviations(theirs)
    apart = ours.mean(axis=0, dtype=np.float64) - theirs.mean(axis=0, dtype=np.float64)
    # With covariances A'A and B'B the trace of their product's root is the sum of the singular values of AB'.
    # No root of a matrix that is singular, as it is where there are fewer images than features.
    shared = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    distance = apart @ apart + np.sum(one**2) + np.sum(other**2) - 2 * shared
    return max(0.0, float(distance))


def _deviations(features: np.ndarray) -> np.ndarray:
    """A matrix (at most F, F) whose product with itself, transposed first, is the covariance of (P, F)."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(features) - 1)


def kernel_distance(ours: np.ndarray, theirs: np.ndarray, seed: int) -> dict[str, float] | None:
    """Unbiased squared MMD of (P, F) and (Q, F) with the kernel (x.y / F + 1)^3: KID (arXiv 1801.01401).

    Mean and standard deviation over seeded random subsets of half the images, at most `SUBSET`; around 0,
    and below it too, for sets of one distribution. None below two images.
    """
    count = min(len(ours), len(theirs))
    if count < 2:
        return None
    ours, theirs = _sorted(ours), _sorted(theirs)
    size = max(2, min(SUBSET, count // 2))
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(SUBSETS):
        x = ours[generator.choice(len(ours), size, replace=False)]
        y = theirs[generator.choice(len(theirs), size, replace=False)]
        values.append(_mmd(x, y))
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "subset": size}


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate from two sets (n, F) of one size."""
    n, features = x.shape
    within = 0.0
    for each in (x, y):
        kernel = (each @ each.T / features + 1) ** 3
        within += (kernel.sum() - np.trace(kernel)) / (n * (n - 1))
    return float(within - 2 * np.mean((x @ y.T / features + 1) ** 3))


def _sorted(features: np.ndarray) -> np.ndarray:
    """Rows in an order of their own, so that a subset does not depend on the order of the images."""
    rows = features.astype(np.float64)
    return rows[np.lexsort(rows.T[::-1])]
