"""llama-bench's protocol, to its end."""

from __future__ import annotations

from llamafleet.onhost.verify import known
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import Place
from llamafleet.protocol.result import Benchmark, Check, failed, passed, skipped

NAME = "benchmark"


def judge_benchmark(report: Benchmark, wanted: int) -> Check:
    """Both tests gave all their samples."""
    pp, tg = report.pp, report.tg
    found = (
        f"pp{pp.n} {pp.median_ts:.2f} ± {pp.stdev_ts:.2f} t/s, "
        f"tg{tg.n} {tg.median_ts:.2f} ± {tg.stdev_ts:.2f} t/s, load {report.load_s} s"
    )
    expected = f"{wanted} samples of each test"
    if min(len(pp.samples_ts), len(tg.samples_ts)) < wanted:
        return failed(NAME, found, expected, "run the verification again")
    return passed(NAME, found, expected)


def _place(place: Place) -> Check:
    if not place.offloaded:
        return skipped(NAME, "not measured: offload is red")
    wanted = place.evidence.config.inputs.bench.repetitions
    return known.priced(judge_benchmark(place.benchmark(), wanted), place.bench().log)


SPEC = Spec(
    NAME,
    place=_place,
    on=frozenset({"gpu", "all", "unnamed"}),
    needs=frozenset({"model"}),
    alone=True,
)
