"""`python -m tests.bench.history [--records N] [--postgres]`: a history of a million records.

Prints the table of docs/history.md: seconds by the clock to fill it, and of each question the best
of ROUNDS; the records that answer it are all read. --postgres: in a server that is started for it.
The figures are made up; their number and shape are those of 100 hosts of 8 GPUs.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path

from llamafleet.history.database import opened, writing
from llamafleet.history.database_import import put
from llamafleet.history.record import Record
from llamafleet.history.records import Filter, History, records_of, with_id
from llamafleet.history.store import DATABASE, Store
from tests.history import RESULT, gpu
from tests.history.postgres import serving

HOSTS, GPUS = 100, 8
FILES = 5_000
ROUNDS = 3
AT_ONCE = 20_000
NOW = datetime(2026, 11, 26, tzinfo=timezone.utc)

QUESTIONS = {
    "one host, 7 days": Filter(hosts=("gpu-42",), since=NOW - timedelta(days=7)),
    "one GPU, all times, tg": Filter(gpus=("GPU-42-3",), tests=("tg",)),
    "all hosts, last day": Filter(since=NOW - timedelta(days=1)),
    "the newest 30": Filter(last=30),
    "hosts by pattern, last day": Filter(hosts=("gpu-4*",), since=NOW - timedelta(days=1)),
}


def made(count: int, hosts: int = HOSTS) -> Iterator[Record]:
    """So many records of a fleet, two a GPU and time, oldest first."""
    return islice(_made(-(-count // (hosts * GPUS * 2)), hosts), count)


def _made(rounds: int, hosts: int) -> Iterator[Record]:
    random.seed(7)
    pair = records_of(replace(RESULT, gpus=(gpu(),)))
    for turn in range(rounds):
        when = NOW - timedelta(hours=6) * (rounds - turn)
        for host in range(hosts):
            for number in range(GPUS):
                for record in pair:
                    ts = record.median_ts * random.gauss(1, 0.005)
                    yield with_id(
                        replace(
                            record,
                            host=f"gpu-{host}",
                            gpu_uuid=f"GPU-{host}-{number}",
                            test_time=when,
                            median_ts=ts,
                            samples_ts=(ts,) * 5,
                        )
                    )


def timed(work: Callable[[], int], rounds: int = ROUNDS) -> tuple[float, int]:
    """Seconds of the best round, and what it found."""
    times, found = [], 0
    for _ in range(rounds):
        begun = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - begun)
    return min(times), found


def fill(history: History, records: Iterator[Record]) -> int:
    filled = 0
    with opened(history.results, history.url) as engine:
        while batch := list(islice(records, AT_ONCE)):
            with writing(engine) as connection:
                filled += put(connection, batch)
    return filled


def one_more(history: History) -> int:
    """A result of today."""
    now = replace(RESULT, host="gpu-42", finished=time.time())
    Store(history.results).write_result("gpu-42", now)
    return history.take_in().records


def many(history: History) -> None:
    """Results of a fleet, a file each, as deploy.py leaves them."""
    for number in range(FILES):
        host = f"host-{number % HOSTS}"
        told = asdict(replace(RESULT, host=host, finished=RESULT.finished + number))
        path = history.results / host / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(told))


def measure(history: History, count: int) -> None:
    print("| | s | records |\n|---|---:|---:|")

    def row(name: str, work: Callable[[], int], rounds: int = ROUNDS) -> None:
        seconds, found = timed(work, rounds)
        print(f"| {name} | {seconds:.2f} | {found:,} |", flush=True)

    row("filled (made up and kept)", lambda: fill(history, made(count)), 1)
    for name, wanted in QUESTIONS.items():
        row(name, lambda wanted=wanted: sum(1 for _ in history.records(wanted)))  # type: ignore[misc]
    row("counted", history.count)
    row("a new result is taken in", lambda: one_more(history), 1)
    many(history)
    row(f"{FILES:,} results are taken in", lambda: history.take_in().records, 1)
    row("nothing new is taken in, of as many files", lambda: history.take_in().records)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.history", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--postgres", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llamafleet-h-") as name:
        results = Path(name, "results")
        results.mkdir()
        if options.postgres:
            folder = Path(name, "pg")
            folder.mkdir()
            Path(name).chmod(0o755)  # The server's account goes through it.
            with serving(folder) as url:
                measure(History(results, url), options.records)
        else:
            measure(History(results), options.records)
            print(f"\n{(results / DATABASE).stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
