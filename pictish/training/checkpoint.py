"""Checkpoints that a killed run continues from, bit for bit: tensors as safetensors, the rest as JSON."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pictish.io.files import one_line, sync
from pictish.training.average import PREFIX, Average
from pictish.training.loss_guard import LossGuard
from pictish.training.resume import check_inputs
from pictish.training.sharding import local, local_rows
from pictish.training.stored import SINGLE_FILE, Stored, index_of, read_like, shard_metadata, shard_name

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # all tensors in one file
SHARDED_VERSION = 2  # in one file a process, and an index of their rows
TEMPORARY = ".pictish-tmp"  # being written
REPLACED = ".pictish-old"  # an earlier checkpoint of the same step, until the new one stands
OPTIMIZER = "optimizer."
_NAME = re.compile(r"step-(\d{8,})")


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    accelerate: "Accelerator | None" = None,
) -> Path:
    """Write `run/checkpoints/step-00001000/{tensors.safetensors,state.json}` and prune to the `keep` newest.

    Written beside and renamed: a reader sees a whole checkpoint or none. `state` is JSON; the step is added.
    A checkpoint of the same step is replaced. Of several processes, all of which must call it, the main one
    writes; of sharded tensors each its rows, in a file of its own, and the main one what is left and, last,
    `state.json` with the index. What fails on one process is an error on all.
    """
    assert keep >= 1, f"keep={keep}: the checkpoint just written would be deleted"
    assert state.get("step", step) == step, f"state says step {state['step']}, asked to save step {step}"
    folder = run / "checkpoints"
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}{TEMPORARY}"
    document = {"format_version": FORMAT_VERSION, "step": step, "state": dict(state)}
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):

        def write_all() -> None:
            _begin(temporary)
            _write_tensors(temporary / SINGLE_FILE, tensors)
            _finish(temporary, final, document, keep)

        _together(accelerate, write_all)
        return final
    assert accelerate is not None
    number, count = accelerate.process_index, accelerate.num_processes
    own = {
        name: local(tensor)
        for name, tensor in tensors.items()
        if number == 0 or (isinstance(tensor, DTensor) and local_rows(tensor)[1])
    }

    def finish() -> None:
        index = index_of(temporary, count, {name: tensor.shape for name, tensor in tensors.items()})
        _finish(temporary, final, {**document, "format_version": SHARDED_VERSION, "index": index}, keep)

    _together(accelerate, lambda: _begin(temporary))
    shard, said = temporary / shard_name(number, count), shard_metadata(step, number, count)
    _together(accelerate, lambda: _write_tensors(shard, own, said), everywhere=True)
    _together(accelerate, finish)
    return final


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the highest step, or None; what an interrupted save left behind is cleaned up."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return None
    _recover(folder)
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> tuple[Stored, dict[str, Any]]:
    """Tensors and state (with the key `step`) of one checkpoint; ValueError if it cannot be read.

    It may have been written by any number of processes. Tensors are read when they are asked for.
    """
    try:
        document = json.loads((path / "state.json").read_text("utf-8"))
        version = document["format_version"]
        if version in (FORMAT_VERSION, SHARDED_VERSION):
            state = {**document["state"], "step": int(document["step"])}
            return Stored(
                path, state["step"], document["index"] if version == SHARDED_VERSION else None
            ), state
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(
            f"{path}: damaged checkpoint ({error}); delete the folder to resume from an older one"
        ) from None
    raise ValueError(
        f"{path}: checkpoint format {version}, this version reads {FORMAT_VERSION} and {SHARDED_VERSION}"
    )


def restore(
    run: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    average: Average | None = None,
    guard: LossGuard | None = None,
    inputs: Mapping[str, str] | None = None,
) -> int:
    """Fill a module and its optimizer, strictly, from the last checkpoint of `run`; returns the step or 0.

    The checkpoint holds the state dict of the module, `optimizer_tensors(optimizer, names)`,
    `average.tensors()`, and in its state, as `guard`, `watch.state()`, and as `inputs` the fingerprints that
    `check_inputs` compares.
    """
    latest = latest_checkpoint(run)
    if latest is None:
        return 0
    tensors, state = load_checkpoint(latest)
    check_inputs(latest, state.get("inputs", {}), inputs or {})
    load_weights(module, tensors)
    if average is not None:
        average.load(tensors)
    if guard is not None:
        guard.load(state.get("watch"))
    load_optimizer_tensors(optimizer, names, tensors)
    logger.info("resuming from %s", latest.name)
    return int(state["step"])


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a module, sharded or not, from the state dict in a checkpoint; ValueError unless it fits."""
    places = module.state_dict()
    own = [name for name in tensors if not name.startswith((OPTIMIZER, PREFIX))]
    state = {name: read_like(tensors, name, places.get(name)) for name in own}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: its weights do not fit this model: {one_line(error)}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """State of an optimizer as `optimizer.NAME.KEY` (for AdamW the keys exp_avg, exp_avg_sq, step).

    `names` are the parameters' names: in any order and with frozen ones too for an optimizer made by `adamw`,
    which knows its own; otherwise exactly those of the optimizer's groups, in their order.
    """
    tensors = {}
    for name, parameter in _named(optimizer, names):
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"optimizer state {key} of {name} is no tensor: {value!r}"
            tensors[f"{OPTIMIZER}{name}.{key}"] = value
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave; keys of `tensors` outside `optimizer.` are left alone."""
    found: dict[str, list[str]] = {}
    for full in tensors:
        if full.startswith(OPTIMIZER):
            name, _, key = full.removeprefix(OPTIMIZER).rpartition(".")
            found.setdefault(name, []).append(key)
    parameters = dict(_named(optimizer, names))
    strange = sorted(found.keys() - parameters.keys())
    if strange:
        raise ValueError(f"checkpoint: optimizer state of {strange[0]}, which this model does not train")
    # Adam's step stays on the CPU unless the kernel is fused (or captured), as torch itself does.
    fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for name, parameter in parameters.items():
        optimizer.state.pop(parameter, None)
        for key in found.get(name, ()):
            whole = key == "step"
            value = read_like(tensors, f"{OPTIMIZER}{name}.{key}", None if whole else parameter)
            if not whole and value.shape != parameter.shape:
                came, want = tuple(value.shape), tuple(parameter.shape)
                raise ValueError(
                    f"checkpoint: optimizer state {key} of {name} has shape {came}, the model {want}"
                )
            device = parameter.device if not whole or fused else torch.device("cpu")
            optimizer.state[parameter][key] = value.detach().to(device, copy=True)


def _named(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> list[tuple[str, Tensor]]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = [name for group in optimizer.param_groups for name in group.get("param_names", [])]
    unknown = sorted(set(own) - set(names))
    assert not unknown, f"the optimizer has parameters that names lacks: {unknown[:3]}"
    used = own or list(names)
    assert len(used) == len(parameters), f"{len(used)} names for {len(parameters)} parameters"
    return list(zip(used, parameters, strict=True))


def _together(accelerate: "Accelerator | None", work: Callable[[], None], everywhere: bool = False) -> None:
    """Do something on the main process, or everywhere; what fails on one process fails on all.

    The others would else wait for it without end.
    """
    several = accelerate is not None and accelerate.num_processes > 1
    failure: Exception | None = None
    if everywhere or accelerate is None or accelerate.is_main_process:
        try:
            work()
        except Exception as error:
            if not several:
                raise
            failure = error
    if several:
        assert accelerate is not None
        failed = torch.tensor(float(failure is not None), device=accelerate.device)
        failed = accelerate.reduce(failed, "sum")
        if failure is not None:
            raise failure
        if failed:
            raise ValueError("another process could not write its part of a checkpoint; it says why")


def _begin(temporary: Path) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    _recover(temporary.parent)
    temporary.mkdir()


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save

    # A copy each: safetensors refuses tensors that share memory (tied weights) or have gaps.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    _write_synced(path, save(copies, metadata))


def _finish(temporary: Path, final: Path, document: Mapping[str, Any], keep: int) -> None:
    """Write `state.json`, which is the last thing, and put the folder into its place."""
    folder = final.parent
    replaced = folder / f".{final.name}{REPLACED}"
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
        sync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
