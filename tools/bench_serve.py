"""What a server does at 1, 4 and 16 clients: images a second, latency, and whether images stay the same.

python -m tools.bench_serve --model starter --images 32 [--url http://host:port --pid N]

Each client sends its next request when the last one was answered; one client is the same as one request after
the other. Rounds of all numbers of clients take turns, so that a machine that does other things as well
disturbs them alike; where there is a process to watch, its CPU seconds an image say more than the clock.
Every image is compared with the one that a single client got for the same seed.
"""

import argparse
import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ("a red apple, noto style", "a blue car", "the sun", "a green bird, twemoji style")


@dataclass
class Measured:
    """All rounds of one number of clients."""

    rates: list[float] = field(default_factory=list)  # images a second
    seconds: list[float] = field(default_factory=list)  # of each request
    cpu: list[float] = field(default_factory=list)  # CPU seconds an image
    different: int = 0


def main() -> None:
    """Measure, and print a table; exit code 1 when an image depended on the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--images", type=int, default=32, help="pictures of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of the decoder; 0 is the preview")
    settings = parser.parse_args()
    more = {} if settings.steps is None else {"num_inference_steps": settings.steps}
    with server(settings.model) if settings.url is None else given(settings.url, settings.pid) as (url, pid):
        alone: dict[int, str] = {}
        asyncio.run(round_of(url, 1, 4, more, alone))  # warm
        found = {clients: Measured() for clients in settings.clients}
        for _ in range(settings.rounds):
            for clients, one in found.items():
                before, begun = cpu_seconds(pid), time.perf_counter()
                answers = asyncio.run(round_of(url, clients, settings.images, more, alone))
                one.rates.append(settings.images / (time.perf_counter() - begun))
                one.cpu.append((cpu_seconds(pid) - before) / settings.images)
                one.seconds += [seconds for seconds, _ in answers]
                one.different += sum(not same for _, same in answers)
    print(
        f"{settings.model}, {os.cpu_count()} cores, {settings.rounds} rounds of {settings.images} pictures\n"
    )
    print("clients  pictures/s  ratio    p50      p95      p99   CPU s/picture  different")
    first = found[settings.clients[0]]
    for clients, one in found.items():
        rate, cuts = statistics.median(one.rates), statistics.quantiles(one.seconds, n=100)
        ratio = rate / statistics.median(first.rates)
        cpu = f"{statistics.median(one.cpu):13.3f}" if pid else f"{'':13}"
        latency = "  ".join(f"{cuts[percent - 1]:5.2f} s" for percent in (50, 95, 99))
        print(f"{clients:7}  {rate:10.2f}  {ratio:5.2f}  {latency}  {cpu}  {one.different:9}")
    sys.exit(1 if any(one.different for one in found.values()) else 0)


async def round_of(
    url: str, clients: int, images: int, more: dict[str, Any], alone: dict[int, str]
) -> list[tuple[float, bool]]:
    """Seconds of each request, and whether its image is that in `alone`, which the first round fills."""
    numbers = iter(range(images))
    answers = []

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, **more}
            begun = time.perf_counter()
            answer = await http.post("/v1/images/generations", json=body)
            seconds = time.perf_counter() - begun
            answer.raise_for_status()
            picture = answer.json()["data"][0]["b64_json"]
            answers.append((seconds, alone.setdefault(number, picture) == picture))

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        await asyncio.gather(*[client(http) for _ in range(clients)])
    return answers


@contextlib.contextmanager
def server(model: str) -> Iterator[tuple[str, int]]:
    """A server of our own on a free port."""
    words = [sys.executable, "-m", "pictish", "serve", "--model", model, "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://\S+", process.stdout.readline())
            if address is None:
                raise SystemExit("the server did not start")
            yield address[0], process.pid
        finally:
            process.terminate()


@contextlib.contextmanager
def given(url: str, pid: int | None) -> Iterator[tuple[str, int | None]]:
    """A server of somebody else."""
    yield url, pid


def cpu_seconds(pid: int | None) -> float:
    """CPU seconds that a process has used, as Linux says it; 0 where there is none to ask."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
