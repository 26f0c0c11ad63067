"""Mixed load on a server for as long as asked: is memory flat, every image right, nothing left unanswered?

python -m tools.soak_serve --minutes 60 --clients 8 --out soak.json [--url http://host:port --pid N]

Each client draws with and without previews, describes, sends bodies of tests/serve/bodies.py, sends bodies
that are too large, and goes away in the middle of requests. Drawings and descriptions are compared with those
that one client got before the load began. `--only odd --bodies 10000` sends odd bodies alone, by number.
Memory is that of the server's process with its workers.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.serve.bodies import PNG, fault_of, request
from tools.bench_serve import PROMPTS, given, server

KINDS = ("draw", "stream", "describe", "odd", "large", "vanish")
REFERENCES = 12  # drawings that are asked for again and again
LARGE = 11 << 20  # bytes; a server takes 10 MiB unless its config says otherwise
WAIT = 300.0  # seconds without an answer
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


@dataclass
class Soak:
    """What is known before the load, and what came of it."""

    url: str
    more: dict[str, Any]
    alone: dict[Any, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # minutes, MiB

    def drawing(self, number: int) -> dict[str, Any]:
        """The body of a drawing."""
        return {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, **self.more}

    def compare(self, kind: str, key: Any, found: str) -> None:
        """Count an answer, and a fault if it is not that of before."""
        self.counts[kind] += 1
        if self.alone.setdefault(key, found) != found:
            self.faults.append(f"{kind} {key}: not the same as alone")


def main() -> None:
    """Load a server; exit code 1 when anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--bodies", type=int, default=10**9, help="stop after this many hostile bodies")
    parser.add_argument("--only", choices=KINDS, help="one kind of request")
    parser.add_argument("--steps", type=int, help="of the decoder; 0 is the preview")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file with the counts, the faults and the memory")
    settings = parser.parse_args()
    more = {} if settings.steps is None else {"num_inference_steps": settings.steps}
    with server(settings.model) if settings.url is None else given(settings.url, settings.pid) as (url, pid):
        soak = Soak(url, more)
        asyncio.run(_load(soak, settings, pid))
    report = {
        "minutes": soak.memory[-1][0] if soak.memory else None,
        "clients": settings.clients,
        "cores": os.cpu_count(),
        "counts": dict(soak.counts),
        "faults": soak.faults,
        "memory_mib": soak.memory,
    }
    if settings.out is not None:
        settings.out.write_text(json.dumps(report, indent=1) + "\n")
    for kind, count in sorted(soak.counts.items()):
        print(f"{kind:10} {count:8,}")
    if soak.memory:
        levels = [level for _, level in soak.memory]
        print(f"memory: {levels[0]:.0f} MiB at first, {max(levels):.0f} at most, {levels[-1]:.0f} at last")
    print(f"{len(soak.faults)} faults", *soak.faults[:20], sep="\n  ")
    sys.exit(1 if soak.faults else 0)


async def _load(soak: Soak, settings: argparse.Namespace, pid: int | None) -> None:
    limits = httpx.Limits(max_connections=settings.clients + 1)
    async with httpx.AsyncClient(base_url=soak.url, timeout=WAIT, limits=limits) as http:
        if settings.only in (None, "draw", "stream"):
            for number in range(REFERENCES):
                await _draw(soak, http, number)
        until, numbers = time.monotonic() + 60 * settings.minutes, itertools.count()
        watching = asyncio.ensure_future(_watch(soak, pid))

        async def client(place: int) -> None:
            chance = random.Random(f"{settings.seed} {place}")
            while time.monotonic() < until and soak.counts["odd"] < settings.bodies:
                kind = settings.only or chance.choice(KINDS)
                try:
                    await _one(soak, http, kind, chance, numbers)
                except httpx.HTTPError as error:
                    soak.faults.append(f"{kind}: {type(error).__name__}: {error}")
                    await asyncio.sleep(1)

        await asyncio.gather(*map(client, range(settings.clients)))
        watching.cancel()
        answer = await http.get("/readyz")
        if answer.status_code != 200:
            soak.faults.append(f"afterwards: {answer.text[:200]}")


async def _one(
    soak: Soak, http: httpx.AsyncClient, kind: str, chance: random.Random, numbers: "itertools.count[int]"
) -> None:
    match kind:
        case "draw":
            await _draw(soak, http, chance.randrange(REFERENCES))
        case "stream":
            await _stream(soak, http, chance.randrange(REFERENCES))
        case "describe":
            message = {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": URL}}],
            }
            answer = await http.post("/v1/chat/completions", json={"messages": [message]})
            if (found := await _answered(soak, kind, answer)) is not None:
                soak.compare(kind, kind, found["choices"][0]["message"]["content"])
        case "odd":
            await _odd(soak, http, next(numbers))
        case "large":
            answer = await http.post("/v1/images/generations", content=bytes(LARGE))
            soak.counts[kind] += 1
            if answer.status_code != 413:
                soak.faults.append(f"large: status {answer.status_code}")
        case "vanish":
            body = {**soak.drawing(chance.randrange(REFERENCES)), "n": 2}
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.0, 2.0)):
                    await http.post("/v1/images/generations", json=body)
            soak.counts[kind] += 1


async def _draw(soak: Soak, http: httpx.AsyncClient, number: int) -> None:
    answer = await http.post("/v1/images/generations", json=soak.drawing(number))
    if (found := await _answered(soak, "draw", answer)) is not None:
        soak.compare("draw", number, found["data"][0]["b64_json"])


async def _stream(soak: Soak, http: httpx.AsyncClient, number: int) -> None:
    body = {**soak.drawing(number), "stream": True, "partial_images": 2}
    async with http.stream("POST", "/v1/images/generations", json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            await _answered(soak, "stream", answer)
            return
        events = [json.loads(line[6:]) async for line in answer.aiter_lines() if line.startswith("data: {")]
    if events[-1].get("type") != "image_generation.completed":
        soak.faults.append(f"stream {number}: ended with {str(events[-1])[:200]}")
        return
    soak.compare("stream", number, events[-1]["b64_json"])


async def _odd(soak: Soak, http: httpx.AsyncClient, number: int) -> None:
    one = request(number)
    headers = {"Content-Type": one.content_type.encode()}
    answer = await http.post(one.path, content=one.content, headers=headers)
    soak.counts["odd"] += 1
    soak.counts[f"odd: {answer.status_code}"] += 1
    fault = fault_of(answer.status_code, answer.headers.get("content-type", ""), answer.content)
    if fault is not None:
        soak.faults.append(f"odd body {number}: {fault}")


async def _answered(soak: Soak, kind: str, answer: httpx.Response) -> Any:
    """The JSON; None, after a while, where the server was too busy; a fault for other errors."""
    if answer.status_code == 200:
        return answer.json()
    if answer.status_code in (429, 503) and "Retry-After" in answer.headers:
        soak.counts[f"{kind}: try again"] += 1
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    else:
        soak.faults.append(f"{kind}: status {answer.status_code}: {answer.text[:200]}")
    return None


async def _watch(soak: Soak, pid: int | None) -> None:
    """Note the memory twelve times a minute."""
    if pid is None:
        return
    begun, process = time.monotonic(), psutil.Process(pid)
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            level = sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])
            soak.memory.append(((time.monotonic() - begun) / 60, level / 2**20))
        await asyncio.sleep(5)


if __name__ == "__main__":
    main()
