"""Tokenizer and decoder with their weights in shards over processes: they learn what one process would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def lines(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "pictures_per_second"} for row in rows]


def test_tokenizer_and_decoder_in_shards_learn_what_one_process_does(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "sharded.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    for part in ("tokenizer", "decoder"):
        one, two = (tmp_path / f"{part}-{name}" for name in ("one", "two"))
        for ours, theirs in zip(lines(two), lines(one), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), (part, ours["step"])
        names = sorted(path.name for path in (two / "checkpoints" / "step-00000020").iterdir())
        assert names == ["state.json", *(f"tensors-0000{number}-of-00002.safetensors" for number in (0, 1))]
        files = sorted(path.relative_to(one / "model") for path in (one / "model").rglob("*.safetensors"))
        assert files == sorted(p.relative_to(two / "model") for p in (two / "model").rglob("*.safetensors"))
        for file in files:
            weights = load_file(one / "model" / file)  # in fp16
            for name, tensor in load_file(two / "model" / file).items():
                torch.testing.assert_close(tensor, weights[name], rtol=2e-3, atol=2e-3)
    assert (tmp_path / "decoder-two" / "samples" / "step-00000020.png").is_file()
