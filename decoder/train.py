"""Trains a decoder: codes of the frozen tokenizer in, pixels out; one visible loop, exact resume.

It reads like tokenizer/train.py. Everything random is a function of the seed and the step.

Legend: B pictures, N cells, F feature channels, S side in pixels.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pictish.decoder.config import TrainConfig
from pictish.decoder.preview import PreviewHead, build_preview, predicted_pixels, save_preview
from pictish.tokenizer.cache import FeatureCache, training_caches
from pictish.tokenizer.dynamic import Tokenizer
from pictish.tokenizer.selector import choose, draw_gate
from pictish.training.checkpoint import optimizer_tensors, restore, save_checkpoint
from pictish.training.metrics import MetricsLog
from pictish.training.optimizer import adamw
from pictish.training.schedule import warmup_cosine
from pictish.training.world import accelerator, keep_freed_memory


def train(
    config: TrainConfig, run: Path, device: str = "auto", progress: Callable[[int, int], None] | None = None
) -> Path:
    """Train by `config` in the folder `run`, from its last checkpoint on; returns the folder `run/model`.

    Raises ValueError for settings that fit neither the tokenizer, the data nor this machine.
    """
    keep_freed_memory()
    accelerate = accelerator(device, config.mixed_precision)
    tokenizer = Tokenizer.from_folder(config.tokenizer, accelerate.device)
    training, validation = training_caches(config.data, tokenizer.network.encoder, run, config.seed)
    torch.manual_seed(config.seed)
    head = build_preview(config.model, tokenizer).to(accelerate.device)
    optimizer = adamw(head, config.learning_rate, config.weight_decay)
    names = [name for name, _ in head.named_parameters()]
    first = restore(run, head, optimizer, names)
    model, optimizer = accelerate.prepare(head, optimizer)
    errors: list[float] = []
    since = time.monotonic()
    with MetricsLog(run, first, config.tensorboard) as metrics:
        for step in range(first, config.steps):
            raw = training.batch(step, config.batch_size, config.seed).to(accelerate.device)
            generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) % 2**63)
            predicted, target = _inputs(tokenizer, raw, partial(_draw, config=config, generator=generator))
            rate = warmup_cosine(step, peak=config.learning_rate, warmup=config.warmup, total=config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with accelerate.autocast():
                picture = model(predicted, predicted_pixels(tokenizer.network.encoder, predicted))
            loss = F.mse_loss(picture.float(), target)
            accelerate.backward(loss)
            norm = accelerate.clip_grad_norm_(head.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            errors.append(loss.item())
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                speed = len(errors) * config.batch_size / (time.monotonic() - since)
                mean = sum(errors) / len(errors)
                metrics.write(
                    done, learning_rate=rate, gradient_norm=float(norm), mse=mean, pictures_per_second=speed
                )
                errors, since = [], time.monotonic()
            if done % config.validate_every == 0 or done == config.steps:
                metrics.write(done, **validate(head, tokenizer, validation, config.batch_size))
            if done % config.checkpoint_every == 0 or done == config.steps:
                tensors = {**head.state_dict(), **optimizer_tensors(optimizer, names)}
                save_checkpoint(run, done, tensors, {}, config.keep_checkpoints)
            if progress is not None:
                progress(done, config.steps)
    save_preview(run / "model", head, config.model, tokenizer.fingerprint, overwrite=True)
    return run / "model"


@torch.inference_mode()
def validate(head: PreviewHead, tokenizer: Tokenizer, cache: FeatureCache, size: int) -> dict[str, float]:
    """Mean PSNR in dB over the validation pictures at the automatic length, and without the head."""
    head.eval()
    ratios: list[Tensor] = []
    plain: list[Tensor] = []
    encoder = tokenizer.network.encoder
    for raw in cache.in_order(size):
        predicted, target = _inputs(tokenizer, raw.to(tokenizer.device), choose)
        pixels = predicted_pixels(encoder, predicted)
        ratios.append(_psnr(head(predicted, pixels), target))
        plain.append(_psnr(pixels, target))
    head.train()
    return {
        "validation_psnr": float(torch.cat(ratios).mean()),
        "validation_psnr_headless": float(torch.cat(plain).mean()),
    }


def _inputs(tokenizer: Tokenizer, raw: Tensor, draw: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Predicted features (B, N, F) and the true picture (B, 3, S, S) of raw features (B, N, F)."""
    predicted = tokenizer.network.round_trip(raw, draw=draw).predicted
    return predicted, tokenizer.network.encoder.to_pixels(raw.float())


def _draw(logits: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    return draw_gate(logits, 0.1, generator, budgets=config.budgets, blind=0.0).gate > 0.5


def _psnr(picture: Tensor, target: Tensor) -> Tensor:
    """PSNR in dB (B,) of pictures (B, 3, S, S) in [0, 1]."""
    return -10 * torch.log10((picture.clamp(0, 1) - target).square().mean((1, 2, 3)).clamp_min(1e-10))
