"""A stub of ComfyUI's node interface: how it imports custom nodes, validates a workflow and runs it.

By its documentation (https://docs.comfy.org/custom-nodes/backend/server_overview): inputs are constants or
links [node id, output number]; constants are converted and checked, links are checked by kind; nodes run
under `torch.inference_mode`, once for each item of an input that comes as a list.
"""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch

CONVERTED = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


class Interrupted(Exception):
    """The user has pressed the stop button."""


class Refused(Exception):
    """A workflow that does not pass validation."""


class Comfy:
    """An installation with one folder of custom nodes; `interrupt_at` presses the stop button at a step."""

    def __init__(self, folder: Path, models_dir: Path, monkeypatch) -> None:
        self.steps: list[tuple[int, int]] = []
        self.interrupt_at: int | None = None
        utils = types.ModuleType("comfy.utils")
        utils.ProgressBar = lambda total: types.SimpleNamespace(update_absolute=self._progress)
        comfy = types.ModuleType("comfy")
        comfy.utils = utils
        folder_paths = types.ModuleType("folder_paths")
        folder_paths.models_dir = str(models_dir)
        for module in (comfy, utils, folder_paths):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        spec = importlib.util.spec_from_file_location("custom_nodes_under_test", folder / "__init__.py")
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.nodes = self.module.NODE_CLASS_MAPPINGS

    def _progress(self, value: int, total: int) -> None:
        self.steps.append((value, total))
        if self.interrupt_at is not None and len(self.steps) >= self.interrupt_at:
            raise Interrupted

    def run(self, workflow: dict[str, dict[str, Any]], wanted: str) -> tuple[list, ...]:
        """Validate a workflow and run what node `wanted` needs; each output of it as a list of items."""
        for name in workflow:
            self._validate(workflow, name)
        done: dict[str, tuple[list, ...]] = {}
        with torch.inference_mode():
            return self._execute(workflow, wanted, done)

    def _validate(self, workflow: dict[str, dict[str, Any]], name: str) -> None:
        node = self.nodes[workflow[name]["class_type"]]
        kinds = node.INPUT_TYPES()
        inputs = workflow[name]["inputs"]
        for one in kinds["required"]:
            if one not in inputs:
                raise Refused(f"{name}: required input is missing: {one}")
        for one, (kind, options) in (kinds["required"] | kinds.get("optional", {})).items():
            if one not in inputs:
                continue
            value = inputs[one]
            if isinstance(value, list):
                source = self.nodes[workflow[value[0]]["class_type"]]
                if source.RETURN_TYPES[value[1]] != kind and not isinstance(kind, list):
                    raise Refused(f"{name}: {one}: {source.RETURN_TYPES[value[1]]} does not fit {kind}")
                continue
            if isinstance(kind, list):
                if value not in kind:
                    raise Refused(f"{name}: value not in list: {one}")
                continue
            if kind not in CONVERTED:
                raise Refused(f"{name}: {one}: {kind} must be a link")
            try:
                value = inputs[one] = CONVERTED[kind](value)
            except (TypeError, ValueError):
                raise Refused(f"{name}: {one}: not converted to {kind}: {value!r}") from None
            if value < options.get("min", value):
                raise Refused(f"{name}: {one}: {value} smaller than min")
            if value > options.get("max", value):
                raise Refused(f"{name}: {one}: {value} bigger than max")

    def _execute(self, workflow, name: str, done: dict[str, tuple[list, ...]]) -> tuple[list, ...]:
        if name in done:
            return done[name]
        node = self.nodes[workflow[name]["class_type"]]
        known = [one for part in node.INPUT_TYPES().values() for one in part]
        given = {
            one: self._execute(workflow, value[0], done)[value[1]] if isinstance(value, list) else [value]
            for one, value in workflow[name]["inputs"].items()
            if one in known
        }
        called = node()
        lists = getattr(node, "OUTPUT_IS_LIST", (False,) * len(node.RETURN_TYPES))
        outputs: tuple[list, ...] = tuple([] for _ in node.RETURN_TYPES)
        for place in range(max(map(len, given.values()))):
            arguments = {one: items[min(place, len(items) - 1)] for one, items in given.items()}
            results = getattr(called, node.FUNCTION)(**arguments)
            assert isinstance(results, tuple)
            for kept, result, many in zip(outputs, results, lists, strict=True):
                kept.extend(result if many else [result])
        done[name] = outputs
        return outputs
