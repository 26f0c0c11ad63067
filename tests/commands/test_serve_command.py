"""`pictish serve` as a process: it says where it listens, and SIGTERM lets it finish what runs."""

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.tree import ROOT

WORDS = [sys.executable, "-m", "pictish", "serve", "--port", "0"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_sigterm_finishes_what_runs(whole_model, tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text("name: tiny\napi_keys: [secret]\n")
    words = [*WORDS, "--model", str(whole_model), "--config", str(config)]
    with subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
            key = {"Authorization": "Bearer secret"}
            assert httpx.get(f"{url}/v1/models", headers=key, timeout=60).json()["data"][0]["id"] == "tiny"
            body = {"prompt": "a red apple", "n": 4, "num_inference_steps": 60}
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(
                    httpx.post, f"{url}/v1/images/generations", json=body, headers=key, timeout=120
                )
                while "pictish_jobs_running 0.0" in httpx.get(f"{url}/metrics", timeout=60).text:
                    assert not answer.done(), answer.result().text
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                assert len(answer.result().json()["data"]) == 4
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_a_mistake_in_the_config_is_one_line(whole_model, tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text("max_n: 100\n")
    words = [*WORDS, "--model", str(whole_model), "--config", str(config)]
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "max_n 100 is more than queue_length 64" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
