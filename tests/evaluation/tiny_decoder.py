"""A diffusion decoder of tiny width with random weights."""

import shutil
from pathlib import Path


def save_tiny_decoder(folder: Path, models: Path) -> Path:
    """A model folder with the tokenizer and preview of `models` and a decoder for the same codes."""
    import torch

    from pictish.configs import parse
    from pictish.decoder.config import DiffusionConfig
    from pictish.decoder.diffusion import DiffusionDecoder, save_diffusion
    from pictish.tokenizer.dynamic import Tokenizer

    shutil.copytree(models / "tokenizer", folder / "tokenizer")
    shutil.copytree(models / "decoder", folder / "preview")
    tokenizer = Tokenizer.from_folder(folder)
    settings = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "patch_size": 8}
    config = {
        "side": 32,
        "denoiser": {"kind": "transformer", "settings": settings},
        "condition": {"channels": 1, "sequence": ["codes"], "width": 16},
        "noise": {"kind": "flow", "predicts": "x0"},
        "sampling": {"scheduler": "DPMSolverMultistepScheduler", "steps": 2, "guidance": 1.5},
    }
    torch.manual_seed(0)
    model = DiffusionDecoder(parse(DiffusionConfig, config, "tiny"), tokenizer)
    save_diffusion(folder / "decoder", model, tokenizer.fingerprint)
    return folder
