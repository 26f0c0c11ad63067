"""Which cells to keep without a learned selector: by what pixels show, at random, or spread evenly.

Legend: S side of an image in pixels, G x G cells, P side of a cell in pixels.
"""

import functools

import numpy as np

from pictish.evaluation.pictures import seed_of


def random_cells(grid: tuple[int, int], number: int, seed: int, name: str) -> np.ndarray:
    """Keep mask (cells,) bool with exactly `number` cells drawn without replacement.

    The draw depends on the seed and the image's name alone, not on the order or the batch.
    """
    rows, columns = grid
    assert 1 <= number <= rows * columns, (number, grid)
    generator = np.random.default_rng(seed_of(seed, name))
    keep = np.zeros(rows * columns, dtype=bool)
    keep[generator.choice(rows * columns, size=number, replace=False)] = True
    return keep


def computed_cells(grid: tuple[int, int], number: int, pixels: np.ndarray) -> np.ndarray:
    """Keep mask (cells,) bool with the `number` cells that stand out most in `pixels` (S, S, 3) uint8.

    A cell's score is the squared distance of its mean colour from that of its neighbourhood, 3 x 3 cells
    with those at the edge repeated beyond it, plus the variance of its own pixels. Ties go to the earlier
    cell.
    """
    rows, columns = grid
    assert 1 <= number <= rows * columns, (number, grid)
    patches = pixels.astype(np.float64) / 255
    patches = patches.reshape(rows, pixels.shape[0] // rows, columns, pixels.shape[1] // columns, 3)
    means = patches.mean(axis=(1, 3))  # (G, G, 3)
    variances = patches.var(axis=(1, 3)).mean(axis=-1)
    around = np.pad(means, ((1, 1), (1, 1), (0, 0)), mode="edge")
    neighbourhood = np.lib.stride_tricks.sliding_window_view(around, (3, 3), axis=(0, 1)).mean(axis=(-1, -2))
    scores = (means - neighbourhood) ** 2  # (G, G, 3)
    order = np.argsort(-(scores.mean(axis=-1) + variances).reshape(-1), kind="stable")
    keep = np.zeros(rows * columns, dtype=bool)
    keep[order[:number]] = True
    return keep


def uniform_cells(grid: tuple[int, int], number: int) -> np.ndarray:
    """Keep mask (cells,) bool with exactly `number` cells spread evenly.

    The rule: the first `number` cells in the order of a Bayer matrix, the thresholds of ordered dithering, of
    which every prefix is spread as evenly as its size allows (4 cells are a square, 8 a quincunx, half of all
    a chequerboard), shifted to where the mean squared distance from a cell to the nearest kept one is least.
    """
    assert 1 <= number <= grid[0] * grid[1], (number, grid)
    return _spread(grid, number).copy()


@functools.lru_cache(maxsize=4096)
def _spread(grid: tuple[int, int], number: int) -> np.ndarray:
    rows, columns = grid
    bayer = _bayer(max(rows, columns))
    best, least = None, np.inf
    for down, right in np.ndindex(bayer.shape):
        order = np.roll(bayer, (down, right), axis=(0, 1))[:rows, :columns].reshape(-1)
        keep = np.zeros(rows * columns, dtype=bool)
        keep[np.argsort(order)[:number]] = True
        gap = _gap(keep, grid)
        if gap < least:
            best, least = keep, gap
    assert best is not None
    return best


def _bayer(side: int) -> np.ndarray:
    """The Bayer matrix of the next power of two: 0, 1, 2, ... in the order in which cells are taken."""
    matrix = np.zeros((1, 1), dtype=np.int64)
    while len(matrix) < side:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return matrix


def _gap(keep: np.ndarray, grid: tuple[int, int]) -> int:
    """Sum over all cells of the squared distance to the nearest kept one; whole, so that ties are exact."""
    from scipy.ndimage import distance_transform_edt

    return int(np.rint(distance_transform_edt(~keep.reshape(grid)) ** 2).sum())
