"""A fleet to look at: three recorded results, and hosts made up from one of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

from llamafleet.history.record import Record
from llamafleet.history.records import records_of
from llamafleet.history.runs import Run
from llamafleet.history.store import Row, read_result
from llamafleet.history.update import find_update
from llamafleet.protocol.result import (
    Benchmark,
    BuildSummary,
    GpuRow,
    Rates,
    Result,
    failed,
)

HERE = Path(__file__).parent

RECORDED = ("h100-pair", "h100-160m", "h200-pair")
"""Results of llamafleet itself on GPU machines; one of them with another model."""

MODEL_OF_ALL = "h100-pair"
"""The recorded result that the others are made from."""

SEED = 14
WEEKS = 16
"""Of the made-up history, a run each week."""
UPDATED = 11
"""The week with the new driver, on all made-up hosts but one."""
REBUILT = 6
"""The week with the new toolkit, and so a new build."""
OLD_DRIVER, OLD_TOOLKIT, OLD_BUILD = "575.57.08", "12.9", "5e5e5e5e5e5e5e5e"
DRIVER_COST = 0.96
"""Of generation, with the new driver."""
NOISE = 0.004
"""Standard deviation from run to run, as a share; made up too."""
CAP_W, CAP_COST = 350.0, 0.72
"""A power limit, and the share of prompt processing that is left."""
BUSY_LEFT = 0.35
"""Of generation, while somebody else uses the GPU."""
BUSY_WEEK = 8

CAPPED, LATE, SHARED, BROKEN = (
    "synthetic-capped", "synthetic-updated-last", "synthetic-shared-once", "synthetic-broken",
)  # fmt: skip
MADE_UP = (*(f"synthetic-h100-{n}" for n in range(1, 9)), CAPPED, LATE, SHARED, BROKEN)

NOTES = (
    "An example. Hosts named recorded-… hold results that llamafleet measured on GPU machines, as "
    "they were written; only the hosts' names are changed.",
    "Hosts named synthetic-… are made up from the recorded H100: their history, driver update, "
    "toolkit update, noise, power cap, busy run and failure were never measured.",
)


@dataclass(frozen=True)
class Example:
    """A fleet as a real one is kept."""

    run: Run
    results: dict[str, Result]
    records: tuple[Record, ...]


def example() -> Example:
    """The same one each time."""
    recorded = {f"recorded-{name}": _recorded(name) for name in RECORDED}
    kept = {host: [replace(result, host=host)] for host, result in recorded.items()}
    kept |= {host: list(_history(host, number)) for number, host in enumerate(MADE_UP)}
    rows = tuple(_row(host, results) for host, results in kept.items())
    newest = {host: results[-1] for host, results in kept.items()}
    ended = max(result.finished for result in newest.values())
    finished = datetime.fromtimestamp(ended, timezone.utc)
    run = Run(
        id="example",
        started=finished - timedelta(minutes=20),
        command=("llamafleet", "report", "--example"),
        hosts=tuple(kept),
        fleet=len(kept),
        waves=(tuple(kept),),
        state="complete",
        finished=finished,
        rows=rows,
    )
    records = tuple(
        record for results in kept.values() for one in results for record in records_of(one)
    )
    return Example(run, newest, records)


def _recorded(name: str) -> Result:
    result = read_result(HERE / f"{name}.json")
    assert isinstance(result, Result), result
    return result


def _row(host: str, results: list[Result]) -> Row:
    *earlier, last = results
    return Row.of(host, last, [], [], update=find_update(earlier, last))


# -- made up ---------------------------------------------------------------------------------------


def _history(host: str, number: int) -> Iterator[Result]:
    """Oldest first; the last one as old as the recorded one."""
    model = _recorded(MODEL_OF_ALL)
    chance = random.Random(f"{SEED} {host}")
    card = 1 + chance.gauss(0, NOISE)
    updated = WEEKS - 1 if host == LATE else UPDATED
    for week in range(WEEKS):
        new = week >= updated
        pp = card * (1 + chance.gauss(0, NOISE))
        tg = card * (1 + chance.gauss(0, NOISE)) * (DRIVER_COST if new else 1)
        gpu = _gpu(model.gpus[0], number, pp, tg, chance)
        if host == CAPPED and week >= REBUILT:
            gpu = _capped(gpu)
        if host == SHARED and week == BUSY_WEEK:
            gpu = _shared(gpu)
        result = _result(model, host, gpu, week, new)
        yield _broken(result) if host == BROKEN and week == WEEKS - 1 else result


def _result(model: Result, host: str, gpu: GpuRow, week: int, new: bool) -> Result:
    """Of one GPU; the checks of the host stay as they were recorded."""
    back = timedelta(weeks=WEEKS - 1 - week).total_seconds()
    driver = model.inputs.driver if new else OLD_DRIVER
    # Nothing was built there: without what a build costs.
    made_of = BuildSummary(inputs=model.build.inputs, llama_cpp_python=model.build.llama_cpp_python)
    fingerprint = model.fingerprint
    if week < REBUILT:
        made_of = replace(made_of, inputs={**(made_of.inputs or {}), "toolkit": OLD_TOOLKIT})
        fingerprint = OLD_BUILD
    inputs = replace(
        model.inputs, fingerprint=fingerprint, driver=driver, gpus=(f"{gpu.name} {gpu.uuid}",)
    )
    return replace(
        model,
        host=host,
        verdict=gpu.verdict,
        fingerprint=fingerprint,
        inputs=inputs,
        started=model.started - back,
        finished=model.finished - back,
        build=made_of,
        system=replace(model.system, driver=driver),
        checks=tuple(one for one in model.checks if one.name in ("library_origin", "control")),
        benchmark=None,
        gpus=(gpu,),
    )


def _gpu(model: GpuRow, number: int, pp: float, tg: float, chance: random.Random) -> GpuRow:
    uuid = f"GPU-5e5e{number:04x}-0000-0000-0000-000000000000"
    benchmark = model.benchmark
    assert benchmark
    made = _scaled(benchmark, pp, tg)
    conditions = tuple(
        replace(one, uuid=uuid, temperature_c=round(50 + chance.gauss(0, 2)))
        for one in made.conditions
    )
    return replace(model, uuid=uuid, benchmark=replace(made, conditions=conditions))


def _scaled(benchmark: Benchmark, pp: float, tg: float) -> Benchmark:
    return replace(benchmark, pp=_times(benchmark.pp, pp), tg=_times(benchmark.tg, tg))


def _times(rates: Rates, factor: float) -> Rates:
    scale = partial(round, ndigits=3)
    return replace(
        rates,
        median_ts=scale(rates.median_ts * factor),
        mean_ts=scale(rates.mean_ts * factor),
        stdev_ts=scale(rates.stdev_ts * factor),
        samples_ts=tuple(scale(sample * factor) for sample in rates.samples_ts),
        discarded_ts=tuple(scale(sample * factor) for sample in rates.discarded_ts),
    )


def _capped(gpu: GpuRow) -> GpuRow:
    """Slow in prompt processing, which takes the power; generation waits for memory."""
    assert gpu.benchmark
    made = _scaled(gpu.benchmark, CAP_COST, 0.995)
    conditions = tuple(
        replace(one, power_limit_w=CAP_W, throttled_s={**one.throttled_s, "power": 1.9})
        for one in made.conditions
    )
    made = replace(made, conditions=conditions)
    (own,) = (one.power_default_w for one in conditions)
    return _busy(
        gpu, made, f"the power limit of GPU 0 is {CAP_W:g} W, below its default of {own:g} W"
    )


def _shared(gpu: GpuRow) -> GpuRow:
    assert gpu.benchmark
    made = _scaled(gpu.benchmark, 0.9, BUSY_LEFT)
    return _busy(gpu, made, "GPU 0 was in use by pid 4242 (made up, compute)")


def _busy(gpu: GpuRow, made: Benchmark, why: str) -> GpuRow:
    """As a verification takes it: offload is proven, the figures are no baseline."""
    return replace(gpu, verdict="BUSY", benchmark=replace(made, busy=(why,)))


def _broken(result: Result) -> Result:
    """A build that put half of the layers on the CPU, as the check of offload tells it."""
    red = failed(
        "offload",
        "17 of 33 layers on CUDA devices",
        "33 of 33 layers on CUDA devices, each whole on one",
        "pyinfra -y inventory deploy.py",
    )
    gpu = result.gpus[0]
    checks = tuple(red if one.name == red.name else one for one in gpu.checks)
    return replace(result, verdict="FAIL", gpus=(replace(gpu, verdict="FAIL", checks=checks),))
