"""Checkpoints that a killed run continues from, bit for bit: tensors as safetensors, the rest as JSON."""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pictish.training.average import PREFIX, Average
from pictish.training.watch import Watch

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
TEMPORARY = ".pictish-tmp"  # being written
REPLACED = ".pictish-old"  # an earlier checkpoint of the same step, until the new one stands
_NAME = re.compile(r"step-(\d{8,})")


def save_checkpoint(
    run: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `run/checkpoints/step-00001000/{tensors.safetensors,state.json}` and prune to the `keep` newest.

    Written beside and renamed: a reader sees a whole checkpoint or none. `state` is JSON; the step is added.
    A checkpoint of the same step is replaced.
    """
    from safetensors.torch import save

    assert keep >= 1, f"keep={keep}: the checkpoint just written would be deleted"
    assert state.get("step", step) == step, f"state says step {state['step']}, asked to save step {step}"
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}{TEMPORARY}"
    replaced = folder / f".{final.name}{REPLACED}"
    _recover(folder)
    temporary.mkdir()
    # A copy each: safetensors refuses tensors that share memory (tied weights) or have gaps.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    _write_synced(temporary / "tensors.safetensors", save(copies))
    document = {"format_version": FORMAT_VERSION, "step": step, "state": dict(state)}
    _write_synced(temporary / "state.json", (json.dumps(document, sort_keys=True) + "\n").encode())
    _sync_folder(temporary)
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    _sync_folder(folder)
    if replaced.exists():
        shutil.rmtree(replaced)
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(_renamed_away(old))
    return final


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the highest step, or None; what an interrupted save left behind is cleaned up."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return None
    _recover(folder)
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(
    path: Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state (with the key `step`) of one checkpoint; ValueError if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        document = json.loads((path / "state.json").read_text("utf-8"))
        if document["format_version"] != FORMAT_VERSION:
            version = document["format_version"]
            raise ValueError(f"{path}: checkpoint format {version}, this version reads {FORMAT_VERSION}")
        state = {**document["state"], "step": int(document["step"])}
        tensors = load_file(path / "tensors.safetensors", device=str(device))
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError, FileNotFoundError) as error:
        raise ValueError(
            f"{path}: damaged checkpoint ({error}); delete the folder to resume from an older one"
        ) from None
    return tensors, state


def restore(
    run: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    average: Average | None = None,
    watch: Watch | None = None,
) -> int:
    """Fill a module and its optimizer, strictly, from the last checkpoint of `run`; returns the step or 0.

    The checkpoint holds the state dict of the module, `optimizer_tensors(optimizer, names)`,
    `average.tensors()`, and in its state, as `watch`, `watch.state()`.
    """
    latest = latest_checkpoint(run)
    if latest is None:
        return 0
    tensors, state = load_checkpoint(latest)
    beside = ("optimizer.", PREFIX)
    module.load_state_dict({name: t for name, t in tensors.items() if not name.startswith(beside)})
    if average is not None:
        average.load(tensors)
    if watch is not None:
        watch.load(state.get("watch"))
    load_optimizer_tensors(optimizer, names, tensors)
    logger.info("going on from %s", latest.name)
    return int(state["step"])


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """State of an optimizer as `optimizer.NAME.KEY` (for AdamW the keys exp_avg, exp_avg_sq, step).

    `names` are the parameters' names: in any order and with frozen ones too for an optimizer made by `adamw`,
    which knows its own; otherwise exactly those of the optimizer's groups, in their order.
    """
    tensors = {}
    for name, parameter in _named(optimizer, names):
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"optimizer state {key} of {name} is no tensor: {value!r}"
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave; keys of `tensors` outside `optimizer.` are left alone."""
    found: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        if full.startswith("optimizer."):
            name, _, key = full.removeprefix("optimizer.").rpartition(".")
            found.setdefault(name, {})[key] = tensor
    parameters = dict(_named(optimizer, names))
    strange = sorted(found.keys() - parameters.keys())
    if strange:
        raise ValueError(f"checkpoint: optimizer state of {strange[0]}, which this model does not train")
    for name, parameter in parameters.items():
        optimizer.state.pop(parameter, None)
        for key, value in found.get(name, {}).items():
            if key != "step" and value.shape != parameter.shape:
                came, want = tuple(value.shape), tuple(parameter.shape)
                raise ValueError(
                    f"checkpoint: optimizer state {key} of {name} has shape {came}, the model {want}"
                )
            # Adam's step stays on the CPU unless the kernel is fused (or captured), as torch itself does.
            fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
            device = parameter.device if key != "step" or fused else torch.device("cpu")
            optimizer.state[parameter][key] = value.detach().to(device, copy=True)


def generator_tensors(generators: Mapping[str, torch.Generator]) -> dict[str, Tensor]:
    """State of each random generator as `generator.NAME` (uint8)."""
    return {f"generator.{name}": generator.get_state() for name, generator in generators.items()}


def load_generator_tensors(generators: Mapping[str, torch.Generator], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `generator_tensors` gave; every generator must be in `tensors`."""
    for name, generator in generators.items():
        if f"generator.{name}" not in tensors:
            raise ValueError(f"checkpoint: no state of the random generator {name}")
        generator.set_state(tensors[f"generator.{name}"].cpu().clone())


def _named(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> list[tuple[str, Tensor]]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = [name for group in optimizer.param_groups for name in group.get("param_names", [])]
    unknown = sorted(set(own) - set(names))
    assert not unknown, f"the optimizer has parameters that names lacks: {unknown[:3]}"
    used = own or list(names)
    assert len(used) == len(parameters), f"{len(used)} names for {len(parameters)} parameters"
    return list(zip(used, parameters, strict=True))


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _recover(folder: Path) -> None:
    """Undo an interrupted save: put back a checkpoint that was being replaced, delete half-written ones."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".step-") and path.name.endswith(REPLACED):
            final = folder / path.name.removeprefix(".").removesuffix(REPLACED)
            if not final.exists():
                path.rename(final)
    for path in folder.iterdir():
        if path.name.startswith(".step-") and path.name.endswith((TEMPORARY, REPLACED)):
            shutil.rmtree(path)


def _renamed_away(path: Path) -> Path:
    """`path` under a temporary name, so that a deletion cut short never leaves half a checkpoint."""
    return path.rename(path.with_name(f".{path.name}{TEMPORARY}"))


def _write_synced(path: Path, blob: bytes) -> None:
    with path.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
