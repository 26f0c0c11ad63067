"""The model of any checkpoint of a training run, as the run itself would have saved it there."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pictish.configs import load, parse
from pictish.io.model_folder import CONFIG
from pictish.pipelines.assemble import copy_part

if TYPE_CHECKING:
    from torch import Tensor

_OWN = (
    "checkpoints",
    "metrics.jsonl",
    "model",
    "samples",
    "tensorboard",
    "wandb",
    "wandb-id",
    CONFIG,
)  # of the run, not to share


def checkpoints_of(run: Path) -> list[int]:
    """Steps of the checkpoints in a run folder, rising."""
    found = [
        path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*") if path.is_dir()
    ]
    return sorted(int(step) for step in found if step.isdecimal())


def export(
    run: Path, out: Path, step: int | None = None, device: str = "auto", *, overwrite: bool = False
) -> Path:
    """Write the model of the checkpoint of `step` (the newest by default) of `run` to the folder `out`.

    The part's own training finishes there without a step: weights or their average are saved, a tokenizer is
    calibrated on the validation images. ValueError where `run` is no run, or has no such checkpoint.
    """
    if not (run / CONFIG).is_file():
        raise ValueError(f"{run}: not the folder of a training run, it has no {CONFIG}")
    raw = load(run / CONFIG)
    steps = checkpoints_of(run)
    wanted = step if step is not None else steps[-1] if steps else None
    if wanted not in steps:
        there = ", ".join(map(str, steps)) or "none"
        asked = "a checkpoint is needed" if wanted is None else f"step {wanted} asked for"
        raise ValueError(f"{run}: {asked}; its checkpoints are of steps {there}")
    assert wanted is not None
    if out.exists() and not overwrite:
        raise ValueError(f"{out}: exists already; choose another folder, or overwrite it")
    with tempfile.TemporaryDirectory(prefix=".pictish-export-", dir=run) as folder:
        temp = Path(folder)
        for path in run.iterdir():
            if path.name not in _OWN and not path.name.startswith("."):
                (temp / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
        name = f"step-{wanted:08d}"
        (temp / "checkpoints").mkdir()
        (temp / "checkpoints" / name).symlink_to((run / "checkpoints" / name).resolve())
        copy_part(_finish(raw, temp, wanted, device), out, overwrite=overwrite)
    return out


def _finish(raw: dict[str, Any], run: Path, step: int, device: str) -> Path:
    """Train the part of a run from a checkpoint of its last step on, which is no step; the folder written."""
    match raw.get("part"):
        case "tokenizer":
            from pictish.tokenizer.config import TrainConfig as TokenizerTraining
            from pictish.tokenizer.train import train as train_tokenizer

            tokenizer = parse(TokenizerTraining, raw, str(run))
            phases = _until(tokenizer.phases, step)
            if not any(phase.quantize and phase.steps for phase in phases):
                raise ValueError(f"step {step}: quantization has not begun there, so that there are no codes")
            return train_tokenizer(tokenizer.model_copy(update={"phases": phases}), run, device)
        case "decoder":
            from pictish.decoder.config import TrainConfig as DecoderTraining
            from pictish.decoder.train import train as train_decoder

            decoder = parse(DecoderTraining, raw, str(run))
            return train_decoder(decoder.model_copy(update={"steps": step}), run, device)
        case "lm":
            from pictish.lm.config import Autoregressive
            from pictish.lm.config import TrainConfig as LanguageTraining
            from pictish.lm.model import ImageTokens
            from pictish.lm.train import train as train_lm
            from pictish.training.checkpoint import load_checkpoint

            lm = parse(LanguageTraining, raw, str(run))
            _, state = load_checkpoint(run / "checkpoints" / f"step-{step:08d}")
            plain = lm.objective
            needed = isinstance(plain, Autoregressive) and (plain.alignment or plain.neighbors)
            return train_lm(
                lm.model_copy(update={"stages": _until(lm.stages, step)}),
                run,
                None if state["image_tokens"] is None else ImageTokens(**state["image_tokens"]),
                device,
                code_vectors=_code_vectors(lm.tokenizer) if needed and lm.tokenizer else None,
            )
    raise ValueError(f"{run}: {CONFIG} names no part that is trained")


def _until(stretches: tuple[Any, ...], step: int) -> tuple[Any, ...]:
    """Phases or stages cut off at a step; those behind it stay without steps: they name what is trained."""
    cut = []
    for stretch in stretches:
        steps = min(stretch.steps, step)
        cut.append(stretch.model_copy(update={"steps": steps}))
        step -= steps
    return tuple(cut)


def _code_vectors(folder: str) -> "Tensor":
    """The vectors (codes, width) of a tokenizer's codes, which heads in a checkpoint were trained on."""
    import torch

    from pictish.tokenizer.dynamic import Tokenizer

    tokenizer = Tokenizer.from_folder(folder)
    with torch.no_grad():
        return tokenizer.network.quantizer.decode(torch.arange(tokenizer.codebook_size)).float()
