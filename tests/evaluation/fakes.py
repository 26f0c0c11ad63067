"""A tokenizer, a preview head and a feature distance of a few lines each, with the real interfaces.

The tokenizer's codes are the grey levels of cells; it keeps those of most contrast and knows no others.
"""

import numpy as np
import torch

from pictish.data.tokens import TokenizedImage

CODES = 64


class FakeTokenizer:
    fingerprint, image_size, grid, codebook_size = "0123456789ab", 16, (4, 4), CODES

    def features(self, pixels):
        """Grey values of each cell's 4 x 4 px, minus mid-grey: (B, 16, 16)."""
        grey = pixels.float().mean(dim=-1) - 127.5
        return grey.view(-1, 4, 4, 4, 4).permute(0, 1, 3, 2, 4).reshape(-1, 16, 16)

    def scores(self, pixels):
        return (self.features(pixels).abs().mean(dim=-1) / 127.5).clamp(0, 1)

    def resize(self, image):
        from pictish.data.images import fit_square

        return fit_square(image, self.image_size)

    def tokenize(self, images, **settings):
        pixels = torch.from_numpy(np.stack([self.resize(image) for image in images]))
        return self.tokenize_pixels(pixels, [(image.height, image.width) for image in images], **settings)

    def tokenize_pixels(self, pixels, sizes, *, budget=None, threshold=None, generators=None, keep=None):
        scores = self.scores(pixels)
        if keep is None and budget is not None:
            keep = torch.zeros_like(scores, dtype=torch.bool)
            keep.scatter_(1, scores.topk(budget, dim=1).indices, True)
        elif keep is None:
            keep = scores > (0.5 if threshold is None else threshold)
            keep[~keep.any(dim=1), 0] = True
        levels = ((self.features(pixels).mean(dim=-1) + 127.5) / 256 * CODES).long()
        return [
            TokenizedImage(
                ids=levels[row][keep[row]].numpy(),
                cells=torch.nonzero(keep[row]).flatten().numpy(),
                grid=self.grid,
                size=size,
                tokenizer=self.fingerprint,
                codebook_size=CODES,
            )
            for row, size in enumerate(sizes)
        ]

    def reconstruct(self, tokens):
        """Kept cells at their own grey level, all others at a level that says nothing."""
        predicted = torch.full((len(tokens), 16, 16), 1e-3)
        predicted[..., 0] = -1e-3
        for row, token in enumerate(tokens):
            levels = (token.ids + 0.5) * 256 / CODES - 127.5
            predicted[row, torch.tensor(token.cells)] = torch.tensor(levels).float()[:, None]
        return predicted


class FakePreview:
    side = 64

    def decode(self, tokens):
        small = FakeTokenizer().reconstruct(tokens).mean(dim=-1) + 127.5
        grid = small.clamp(0, 255).to(torch.uint8).view(-1, 4, 1, 4, 1, 1)
        return grid.expand(-1, 4, 16, 4, 16, 3).reshape(-1, 64, 64, 3)


class FakeDistance:
    def features(self, pictures):
        return torch.from_numpy(pictures).float() / 255

    def compare(self, ours, theirs):
        return (ours - theirs).abs().mean(dim=(1, 2, 3)).double().numpy()
