"""Clients of the serve demo: so many at once, each sending a request when the last one was answered.

    python -m benchmarks.serve.clients PORT ANSWERS REQUESTS CANDIDATES CLIENTS USERS ITEMS features|ids

Prints p50 and p99 (milliseconds) and requests per second; ANSWERS gets the scores, `[requests, candidates]`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import httpx
import numpy as np
import pyarrow as pa

from benchmarks.serve import model
from mari_onnx.serving import protocol

WARM_UP = 32


def bodies(requests: int, candidates: int, users: int, items: int, kind: str) -> tuple[list[bytes], list[bytes]]:
    """Each request with the user's features, and without them where the way keeps states."""
    catalogue, whole, short = model.items(items), [], []
    for number in range(requests):
        ids, cross = model.candidates(number, candidates, items)
        who = number % users
        said = {protocol.USER_KEY: str(who)}
        if kind == "features":
            tensors = {**model.user(who), **{k: v[ids] for k, v in catalogue.items()}, **cross}
            whole.append(protocol.tensors_to_arrow(tensors, {}))
            continue
        whole.append(protocol.tensors_to_arrow({**model.user(who), protocol.ITEM_IDS: ids, **cross}, said))
        short.append(protocol.tensors_to_arrow({protocol.ITEM_IDS: ids, **cross}, said))
    return whole, short or whole


async def run(url: str, whole: list[bytes], short: list[bytes], clients: int, candidates: int) -> dict[str, object]:
    """Sends all requests. A user whose state is not there (400) is sent again with features."""
    scores, taken, waiting = (
        np.zeros((len(whole), candidates), np.float32),
        np.zeros(len(whole)),
        iter(range(len(whole))),
    )
    headers = {"content-type": protocol.ARROW}

    async def one(client: httpx.AsyncClient, number: int) -> np.ndarray:
        answer = await client.post(url, content=short[number], headers=headers)
        if answer.status_code == 400 and short is not whole:
            answer = await client.post(url, content=whole[number], headers=headers)
        answer.raise_for_status()
        (row,) = pa.ipc.open_stream(answer.content).read_all().to_pylist()
        return np.frombuffer(row["data"], "<f4")

    async def client_of(client: httpx.AsyncClient) -> None:
        for number in waiting:
            begun = time.perf_counter()
            scores[number] = await one(client, number)
            taken[number] = time.perf_counter() - begun

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=clients)) as client:
        for number in range(min(WARM_UP, len(whole))):
            await one(client, number)
        begun = time.perf_counter()
        await asyncio.gather(*(client_of(client) for _ in range(clients)))
        seconds = time.perf_counter() - begun
    p50, p99 = (1e3 * float(x) for x in np.percentile(taken, [50, 99]))
    return {"scores": scores, "p50": p50, "p99": p99, "rate": len(whole) / seconds}


def main() -> None:
    """See the module."""
    port, path, *numbers, kind = sys.argv[1:]
    requests, candidates, clients, users, items = map(int, numbers)
    whole, short = bodies(requests, candidates, users, items, kind)
    url = f"http://127.0.0.1:{port}/v2/models/ranking/infer"
    found = asyncio.run(run(url, whole, short, clients, candidates))
    np.savez(path, scores=found.pop("scores"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
