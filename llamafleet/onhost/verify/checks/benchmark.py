"""llama-bench's protocol, to its end, on GPUs that were free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llamafleet.onhost.verify import known
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.freedom import Finding
from llamafleet.onhost.verify.place import Place
from llamafleet.protocol.result import Benchmark, Check, failed, passed, skipped

NAME = "benchmark"


def judge_benchmark(report: Benchmark, wanted: int, findings: Sequence[Finding] = ()) -> Check:
    """Both tests gave all their samples, and nothing else was at work meanwhile."""
    pp, tg = report.pp, report.tg
    found = (
        f"pp{pp.n} {pp.median_ts:.2f} ± {pp.stdev_ts:.2f} t/s, "
        f"tg{tg.n} {tg.median_ts:.2f} ± {tg.stdev_ts:.2f} t/s, load {report.load_s} s"
    )
    expected = f"{wanted} samples of each test"
    if min(len(pp.samples_ts), len(tg.samples_ts)) < wanted:
        return failed(NAME, found, expected, "run the verification again")
    return conditional(passed(NAME, found, expected), report.attempts, findings)


def conditional(check: Check, attempts: int, findings: Sequence[Finding]) -> Check:
    """A pass as its conditions allow it: figures of a busy GPU stand in brackets."""
    busy = [one for one in findings if one.weight == "busy"]
    warn = [one for one in findings if one.weight == "warn"]
    noted = "".join(f"; {one.text}" for one in findings if one.weight != "busy")
    if busy:
        times = f" measured {attempts} times" if attempts > 1 else ""
        reasons = "; ".join(dict.fromkeys(one.text for one in busy))
        return replace(
            check,
            status="busy",
            found=f"[{check.found}]{times}: {reasons}{noted}",
            expected=f"{check.expected} on a GPU that is free and not held back",
            next="; ".join(dict.fromkeys(one.next for one in busy)),
        )
    if warn:
        advice = "; ".join(dict.fromkeys(one.next for one in warn))
        return replace(check, status="warn", found=check.found + noted, next=advice)
    return replace(check, found=check.found + noted)


def _place(place: Place) -> Check:
    if not place.offloaded:
        return skipped(NAME, "not measured: offload is red")
    wanted = place.evidence.config.inputs.bench.repetitions
    measured = place.measuring()
    check = judge_benchmark(measured.benchmark, wanted, measured.findings)
    return known.priced(check, place.bench().log)


SPEC = Spec(
    NAME,
    place=_place,
    on=frozenset({"gpu", "all", "unnamed"}),
    needs=frozenset({"model"}),
    alone=True,
)
