"""How large the HTML report of 100 hosts with 100 runs each is, and how long it takes.

.venv/bin/python -m tests.bench.report [--hosts N] [--runs N] [--gpus N] [-o FILE]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from llamafleet.cli.page import page_of
from llamafleet.history.example import HERE
from llamafleet.history.record import Record
from llamafleet.history.records import records_of
from llamafleet.history.runs import Run
from llamafleet.history.store import Row, read_result
from llamafleet.protocol.result import GpuRow, Result

MOST = 1.5e6
"""Bytes that a report of 100 hosts and 100 runs may have."""


def fleet(hosts: int, runs: int, gpus: int) -> Iterator[list[Result]]:
    """Of each host its results, made from a recorded one: with noise of 0.4 %, a driver update
    every 20 runs and a new build every 33."""
    model = read_result(HERE / "h100-pair.json")
    assert isinstance(model, Result)
    chance = random.Random(1)
    for host in range(hosts):
        yield [_result(model, f"gpu-{host:03}", run, gpus, chance) for run in range(runs)]


def _result(model: Result, host: str, run: int, gpus: int, chance: random.Random) -> Result:
    driver = f"580.{95 + run // 20}.05"
    rows = tuple(_gpu(model.gpus[0], f"{host}-{n}", chance) for n in range(gpus))
    uuids = tuple(f"{gpu.name} {gpu.uuid}" for gpu in rows)
    return replace(
        model,
        host=host,
        finished=model.finished + run * 86400.0,
        fingerprint=f"{run // 33:02x}" * 8,
        inputs=replace(model.inputs, driver=driver, gpus=uuids),
        system=replace(model.system, driver=driver),
        benchmark=model.benchmark if gpus > 1 else None,
        gpus=rows,
    )


def _gpu(model: GpuRow, uuid: str, chance: random.Random) -> GpuRow:
    assert model.benchmark
    pp, tg = (
        replace(one, median_ts=round(one.median_ts * (1 + chance.gauss(0, 0.004)), 3))
        for one in (model.benchmark.pp, model.benchmark.tg)
    )
    return replace(model, uuid=f"GPU-{uuid}", benchmark=replace(model.benchmark, pp=pp, tg=tg))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    records: list[Record] = []
    results: dict[str, Result] = {}
    for some in fleet(arguments.hosts, arguments.runs, arguments.gpus):
        results[some[-1].host] = some[-1]
        records += [record for one in some for record in records_of(one)]
    rows = [Row.of(host, one, (), ()) for host, one in results.items()]
    now = max(record.test_time for record in records)
    run = Run("bench", now - timedelta(hours=1), (), tuple(results), len(rows), (), "complete", now)
    begun = time.process_time()
    page = page_of(run, rows, records, results, (), made=now)
    seconds = time.process_time() - begun
    size = len(page.encode())
    print("| hosts | runs | GPUs each | measurements | size | CPU time |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {arguments.hosts} | {arguments.runs} | {arguments.gpus} | {len(records):,} "
        f"| {size / 1e6:.2f} MB | {seconds:.1f} s |"
    )
    if arguments.output:
        arguments.output.write_text(page, encoding="utf-8")
    if size > MOST:
        raise SystemExit(f"found {size} bytes; expected at most {MOST:.0f}")


if __name__ == "__main__":
    main()
