"""The page as text: what is on it, and what no host's words can put there."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import pytest

from llamafleet import terminal
from llamafleet.history.bands import Bands, Bandwidth
from llamafleet.history.example import NOTES, example
from llamafleet.history.html import gpus, plot
from llamafleet.history.html import render as html_render
from llamafleet.history.html.gather import page
from llamafleet.history.html.render import render
from llamafleet.history.html.view import Material
from llamafleet.history.lastupdate import last_updates
from llamafleet.history.outliers import find_outliers
from llamafleet.history.record import Record
from llamafleet.history.store import Built, GpuLine, Row
from llamafleet.protocol.result import Check
from tests.history import RESULT
from tests.history.html.fleets import NOTHING, record, slow_fleet

MADE = datetime(2026, 11, 26, 22, 0, tzinfo=timezone.utc)
HOSTILE = "</script><img src=x onerror=alert(1)><b>\u202e\x1b[31m' \" `{{7*7}}"


class Read(HTMLParser):
    """What a browser makes of a page: elements and the text that is seen."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def row(*gpus: GpuLine, **changed: Any) -> Row:
    told = gpus or (GpuLine("NVIDIA GeForce RTX 4090", "GPU-1", "PASS", 11000.0, 150.0),)
    return Row(**{"host": "gpu-a", "verdict": "PASS", "gpus": told, **changed})


def made(*records: Record, rows: tuple[Row, ...] = (), bands: Bands = NOTHING) -> str:
    return render(Material(MADE, rows or (row(),), records, {"gpu-a": RESULT}), bands)


def data(text: str) -> Any:
    packed = re.search(r'id="data">([^<]*)<', text)
    assert packed
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_the_page_names_nothing_outside_of_itself() -> None:
    text = made(record())
    for tag, attributes in Read(text).elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            target = attributes.get(name) or "#"
            assert target.startswith("#") or target == "data:,", (tag, target)
    assert not re.search(r"url\((?!#)|@import|https?://", text)


def test_its_policy_lets_its_own_script_and_style_run_and_nothing_else() -> None:
    text = made(record())
    policy = next(
        attributes["content"] or ""
        for tag, attributes in Read(text).elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        content = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(sha256(content[0].encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert not re.search(r"<[^>]+ (style|on\w+)=", text.split("<body>")[1])


def of_words(note: str) -> str:
    """A page with `note` wherever a host, a file or a setting has a word."""
    gpu = GpuLine(f"RTX{note}", f"GPU-1{note}", "PASS", 1.0, 2.0, busy=True)
    words = row(
        gpu,
        GpuLine("b", "GPU-2", "FAIL"),
        host=f"gpu-a{note}",
        verdict="FAIL",
        reason=(f"red{note}",),
        busy=(f"busy{note}",),
        driver=f"580{note}",
        toolkit=f"13{note}",
        build=note[:8] or "01234567",
    )
    changed = {"host": words.host, "gpu_uuid": gpu.uuid, "gpu_info": gpu.name}
    records = [
        record(
            n,
            **changed,
            model_filename=f"m{note}",
            driver=f"{n}{note}",
            busy=(f"why{note}",) if n else (),
        )
        for n in range(2)
    ]
    material = Material(
        made=MADE,
        rows=(words,),
        records=tuple(records),
        results={words.host: with_check(note)},
        head=f"run{note}",
        notes=(f"note{note}",),
    )
    return render(material, NOTHING)


def test_what_hosts_say_stays_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, hostile = of_words(""), of_words(HOSTILE)
    assert [tag for tag, _ in Read(hostile).elements] == [tag for tag, _ in Read(plain).elements]
    assert hostile.replace("\n", "").isprintable()
    assert hostile.count("<script") == 2
    monkeypatch.setattr(gpus, "WRITTEN", 0)
    bodies = [data(of_words(note))["gpus"].values() for note in ("", HOSTILE)]
    elements = [[tag for one in some for tag, _ in Read(one).elements] for some in bodies]
    assert elements[0] == elements[1]
    assert all(one.replace("\n", "").isprintable() for one in bodies[1])
    assert "onerror" in Read(hostile).text, "the words did not reach the page"


def with_check(note: str) -> Any:
    check = Check(f"offload{note}", "fail", f"found{note}", f"expected{note}", f"next{note}")
    gpu = replace(RESULT.gpus[0], uuid=f"GPU-1{note}", checks=(check,))
    return replace(RESULT, host=f"gpu-a{note}", gpus=(gpu,))


def test_what_is_asked_for_is_on_the_page() -> None:
    drivers = ["575.57.08"] * 4 + ["580.95.05"] * 4
    records = [
        record(
            n, driver=driver, median_ts=(150.0 if n < 4 else 144.0) + n / 10, model_size=3825872896
        )
        for n, driver in enumerate(drivers)
    ]
    red = Check("offload", "fail", "17 of 33 layers", "expected 33", "deploy")
    result = replace(RESULT, gpus=(replace(RESULT.gpus[0], uuid="GPU-1", checks=(red,)),))
    bandwidth = Bandwidth("GeForce RTX 4090", None, 1008.0, "recalled")
    claims = replace(NOTHING.claims, gpu="GeForce RTX 4090")
    bands = replace(NOTHING, bandwidths=(bandwidth,), claims=claims)
    material = Material(MADE, (row(),), tuple(records), {"gpu-a": result})
    text = " ".join(Read(render(material, bands)).text.split())
    for wanted in (
        "1 host 1 PASS 1 GPU 1 PASS", "55 %",
        "guide: tokens per second 50-150: met: 144.7", "roofline: within: 55% of the 263.5 t/s",
        "Driver 575.57.08 → 580.95.05, since 2026-03-29", "150.1 (4)", "144.6 (4)",
        "slower -3.7 % (-",
        "Evidence of 2026-11-25: 2 checks", "17 of 33 layers", "expected 33", "4 libraries",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_who_is_slow_stands_at_the_top_with_the_reason() -> None:
    records = tuple(replace(r, processes=2) if r.gpu_uuid == "GPU-1" else r for r in slow_fleet())
    material = Material(MADE, (row(),), records)
    shown = page(material, NOTHING)
    assert [gpu.uuid for gpu in shown.slow] == ["GPU-1"]
    text = " ".join(Read(render(material, NOTHING)).text.split())
    top = text[text.index("What needs a look") : text.index("Show lines with")]
    assert "SLOW gpu-a" in top
    assert "33.3 % below its 5 peers' 150.0" in top
    assert "likely: 2 other processes used it meanwhile" in top


def test_who_is_slow_is_open_and_named_so_in_the_fleet() -> None:
    rows = (row(), *rows_of(*((f"gpu-{k}", "PASS") for k in "xyz")))
    material = Material(MADE, rows, tuple(slow_fleet()))
    assert [gpu.uuid for gpu in page(material, NOTHING).gpus if gpu.opened] == ["GPU-1"]
    fleet = render(material, NOTHING).split('<section id="fleet"')[1].split("</section>")[0]
    lines = [line for line in fleet.splitlines() if "v-slow" in line]
    assert len(lines) == 1
    assert '<th scope="row">gpu-a</th>' in lines[0]


def test_differences_of_one_update_are_drawn_to_one_scale_inside_of_their_plot() -> None:
    rates = {1: 100.0, 2: 140.0}
    records = [
        record(n, gpu_uuid=f"GPU-{k}", gpu_info=f"H{k}", driver="1" if n < 4 else "2",
               median_ts=(rates[k] if n > 3 else 150.0) + n / 10)
        for k in rates for n in range(8)
    ]  # fmt: skip
    (update,) = page(Material(MADE, (), tuple(records)), NOTHING).updates
    at = [[float(x) for x in re.findall('cx="([^"]*)"', bar)] for _, bar in update.drawn]
    assert [5 <= x < 40 for (x,) in at] == [True, False]
    assert all(5 <= x <= 155 for (x,) in at)


def test_of_equal_gpus_none_is_called_slow() -> None:
    shown = page(Material(MADE, (row(),), tuple(slow_fleet()[3:])), NOTHING)
    assert not shown.slow


def test_a_driver_update_is_first_class_and_another_change_is_not_one() -> None:
    def updates(**changed: str) -> int:
        shown = page(
            Material(MADE, (row(),), (record(0), record(1, **changed))),
            NOTHING,
        )
        return len(shown.updates)

    assert updates(driver="580.95.05") == 1
    assert updates(fingerprint="fedcba9876543210") == 0


def test_the_worst_comes_first_then_who_is_slow() -> None:
    """GPU-1 is the slow one."""
    hosts = (("a", "2", "PASS"), ("b", "1", "PASS"), ("c", "3", "BUSY"), ("d", "4", "FAIL"))
    rows = tuple(
        row(GpuLine("g", f"GPU-{n}", verdict, 1.0, 1.0), host=f"gpu-{host}", verdict=verdict)
        for host, n, verdict in hosts
    )
    shown = page(Material(MADE, rows, tuple(slow_fleet())), NOTHING)
    assert [gpu.host[-1] for gpu in shown.gpus] == ["d", "c", "b", "a", "e", "f"]
    assert shown.hosts == {"FAIL": 1, "BUSY": 1, "PASS": 2}


def test_a_host_without_a_gpu_and_a_gpu_without_a_row_are_on_the_page() -> None:
    unreached = Row(host="gpu-b", verdict="NOT VERIFIED", reason=("run: found no end",))
    gone = record(gpu_uuid="GPU-gone", host="gpu-c")
    shown = page(Material(MADE, (row(), unreached), (record(), gone)), NOTHING)
    assert [(gpu.host, gpu.verdict) for gpu in shown.gpus] == [
        ("gpu-b", "NOT VERIFIED"), ("gpu-a", "PASS"), ("gpu-c", ""),
    ]  # fmt: skip
    text = Read(made(gone, rows=(row(), unreached))).text
    assert "no verdict" in text
    assert "run: found no end" in text


def test_of_several_gpus_each_has_a_line_and_all_together_one() -> None:
    gpus = [GpuLine("g", f"GPU-{n}", "PASS", 1.0, 1.0) for n in range(2)]
    together = record(gpu_uuid="", gpus=2)
    shown = page(Material(MADE, (row(*gpus),), (together,)), NOTHING)
    assert [gpu.name for gpu in shown.gpus] == ["2 GPUs together", "g", "g"]
    assert shown.gpus[0].tg and shown.gpus[0].tg.median_ts == 150.0
    assert sum(shown.counted.values()) == 2


def test_a_fleet_without_anything_is_a_page_too() -> None:
    assert "There is no GPU, nor a host." in render(Material(MADE, (), ()), NOTHING)


def test_figures_of_a_gpu_that_was_not_free_stand_in_brackets() -> None:
    assert "(150.0)" in made(record(busy=("in use",)))
    assert "(150.0)" not in made(record())


def test_brackets_are_those_of_the_figure_and_not_of_the_other_test() -> None:
    text = made(record(0, "pp", median_ts=900.0), record(1, busy=("in use",)))
    cells = re.findall('data-value="(?:900|150).0">([^<]*)<', text)
    assert cells == ["900.0", "(150.0)"]


def test_runs_and_results_are_there_to_copy() -> None:
    found = data(made(record(0), record(1, busy=("in use",))))
    assert found["results"][0]["gpus"][0]["uuid"] == "GPU-0"
    (series,) = found["series"].values()
    assert series["rate"] == [150.0, 150.0]
    assert [series["texts"][n] for n in series["busy"]] == ["", "in use"]
    assert [series["texts"][n] for n in series["driver"]] == ["575.57.08"] * 2


def test_a_ring_has_its_reason_also_where_the_gpu_was_not_busy() -> None:
    """A figure beside a red check is on no line: who reads the plot is told why."""
    text = made(record(0), record(1, verdict="FAIL"), record(2, busy=("in use", "hot")))
    (series,) = data(text)["series"].values()
    assert [series["texts"][n] for n in series["busy"]] == ["", "FAIL", "in use; hot"]
    assert text.count('class="busy"') == 2
    assert "; 2 of a GPU that was not free and healthy" in text


def rows_of(*verdicts: tuple[str, str]) -> tuple[Row, ...]:
    return tuple(
        row(GpuLine("g", f"GPU-{host}", verdict), host=host, verdict=verdict)
        for host, verdict in verdicts
    )


def test_what_needs_a_look_is_the_worst_first_and_leads_to_its_gpu() -> None:
    rows = rows_of(("a", "BUSY"), ("b", "NOT VERIFIED"), ("c", "PASS"), ("d", "FAIL"))
    shown = page(Material(MADE, rows, ()), NOTHING)
    assert [one.host for one, _ in shown.attention] == ["d", "b", "a"]
    hosts = {gpu.id: gpu.host for gpu in shown.gpus}
    assert [hosts[id] for _, id in shown.attention] == ["d", "b", "a"]


def test_who_is_slow_is_what_the_command_says_however_old_the_figures_are() -> None:
    old = tuple(replace(r, test_time=r.test_time - timedelta(days=900)) for r in slow_fleet())
    (group,) = find_outliers(old)
    shown = page(Material(MADE, (row(),), old), NOTHING)
    assert [gpu.uuid for gpu in shown.slow] == [one.gpu_uuid for one in group.outliers] == ["GPU-1"]
    assert shown.slow[0].measured == old[2].test_time


def test_each_gpu_s_update_is_what_the_command_says_of_it() -> None:
    """Not what lies next to the change on its plot: there another toolkit cuts the runs in two."""
    records = tuple(
        record(n, median_ts=150.0 + n / 10, driver="1" if n < 4 else "2", nvcc=f"1{n // 3}")
        for n in range(8)
    )
    shown = page(Material(MADE, (row(),), records), NOTHING)
    ((_, update, found),) = shown.updated
    assert (update.before, update.after) == ("1", "2")
    assert (found,) == last_updates(records)[0].comparisons
    assert found.a and found.b
    assert (found.a.runs, found.b.runs) == (4, 4)


def test_of_the_gpus_that_were_updated_the_largest_loss_comes_first() -> None:
    records = [
        record(n, gpu_uuid=f"GPU-{gpu}", driver="1" if n < 4 else "2", median_ts=rate + n / 10)
        for gpu, after in ((1, 150.0), (2, 120.0), (3, 170.0))
        for n in range(8)
        for rate in [150.0 if n < 4 else after]
    ]
    records += [record(n, gpu_uuid="GPU-4", driver=str(n)) for n in range(2)]
    shown = page(Material(MADE, (), tuple(records)), NOTHING)
    assert [one.gpu.uuid[-1] for one in shown.updated] == ["2", "1", "3", "4"]


def test_the_first_gpus_are_written_and_the_others_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same form: what a script unpacks is what would have been there."""
    records = tuple(record(n, gpu_uuid=f"GPU-{gpu}") for gpu in range(3) for n in range(2))
    whole = made(*records)
    monkeypatch.setattr(gpus, "WRITTEN", 1)
    text = made(*records)
    packed = data(text)["gpus"]
    assert list(packed) == ["gpu-2", "gpu-3"]
    for id, body in packed.items():
        assert body in whole
        assert body not in text
        assert f'<div data-gpu="{id}"></div>' in text
    assert "only the first 1 of 3 lines" in text
    assert len(data(text)["series"]) == 3


def test_a_host_of_which_no_gpu_is_known_is_not_said_to_have_none() -> None:
    unreached = Row(host="gpu-b", verdict="NOT VERIFIED")
    cpu = Row(host="gpu-c", verdict="CPU ONLY")
    shown = page(Material(MADE, (unreached, cpu), ()), NOTHING)
    assert [gpu.name for gpu in shown.gpus] == ["GPUs not known", "no GPU"]


def test_gpus_that_the_settings_leave_out_are_named() -> None:
    text = " ".join(Read(made(record(), rows=(row(left_out=("H100 GPU-9",)),))).text.split())
    assert "gpu-a: not verified, as the setting gpus says: H100 GPU-9" in text


def test_evidence_says_of_when_it_is_and_a_time_that_is_none_harms_nobody() -> None:
    def text(finished: float) -> str:
        result = replace(RESULT, finished=finished)
        rows = (row(GpuLine("g", "GPU-0", "PASS")),)
        return Read(render(Material(MADE, rows, (), {"gpu-a": result}), NOTHING)).text

    assert "Evidence of 2026-11-25: 2 checks, all green" in text(RESULT.finished)
    assert "Evidence: 2 checks, all green" in text(1e300)


def test_a_slow_gpu_that_is_busy_stands_among_its_peers() -> None:
    """A power limit makes a GPU slow and BUSY."""
    records = tuple(
        replace(r, busy=("capped",)) if r.gpu_uuid == "GPU-1" else r for r in slow_fleet()
    )
    (group,) = page(Material(MADE, (), records), NOTHING).groups
    assert (group.gpus, group.low) == (6, 100.0)
    assert "◆ gpu-a GPU-1" in group.svg


def test_no_secret_is_on_the_page_nor_packed_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_secrets", {"hunter2-hunter2"})
    for written in (0, 9):
        monkeypatch.setattr(gpus, "WRITTEN", written)
        text = of_words(" hunter2-hunter2")
        assert "hunter2-" not in text
        assert "hunter2-" not in json.dumps(data(text))


def test_what_needs_a_look_is_open_and_what_is_green_is_not() -> None:
    red = Check("offload", "fail", "17", "33", "deploy")
    result = replace(RESULT, gpus=(replace(RESULT.gpus[0], uuid="GPU-a", checks=(red,)),))
    rows = rows_of(("a", "PASS"), ("b", "PASS"), ("c", "BUSY"), ("d", "PASS"), ("e", "PASS"))
    shown = page(Material(MADE, rows, (), {"a": result}), NOTHING)
    assert {gpu.host for gpu in shown.gpus if gpu.opened} == {"a", "c"}
    text = render(Material(MADE, rows, (), {"a": result}), NOTHING)
    assert len(re.findall('<details class="gpu" id="gpu-.*" open>', text)) == 2


def test_what_is_below_the_expected_is_marked_and_changes_no_verdict() -> None:
    bandwidth = Bandwidth("GeForce RTX 4090", None, 1008.0, "recalled")
    bands = replace(NOTHING, bandwidths=(bandwidth,), roofline_low=0.6)
    text = made(record(model_size=3825872896), bands=bands)
    (gpu,) = page(Material(MADE, (row(),), (record(model_size=3825872896),)), bands).gpus
    assert (gpu.warned, gpu.verdict, gpu.opened) == (True, "PASS", False)
    assert '<span class="v v-busy">WARN</span>' in text
    assert "WARN below: 57% of the 263.5 t/s" in text


def test_of_a_long_history_the_newest_are_drawn_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plot, "MOST_POINTS", 3)
    text = made(*(record(n, median_ts=100.0 + n) for n in range(5)))
    (series,) = data(text)["series"].values()
    assert series["rate"] == [102.0, 103.0, 104.0]
    assert "; 2 older runs are not drawn" in text


def test_driver_toolkit_and_build_are_those_of_the_newest_run_else_of_the_last_figure() -> None:
    """A run whose verification failed has a new driver and no figure."""
    told = row(driver="590.1", toolkit="13.1", build="ffffffffffffffff")
    gone = record(gpu_uuid="GPU-2", host="gpu-b")
    shown = page(Material(MADE, (told,), (record(), gone)), NOTHING)
    assert [(gpu.driver, gpu.toolkit, gpu.build[:8]) for gpu in shown.gpus] == [
        ("590.1", "13.1", "ffffffff"), ("575.57.08", "13.0", "01234567"),
    ]  # fmt: skip


def test_the_trend_is_that_of_the_newest_free_figures() -> None:
    records = [record(n, median_ts=100.0 + n) for n in range(gpus.TREND + 9)]
    records += [record(99, busy=("in use",), median_ts=1.0)]
    (gpu,) = page(Material(MADE, (row(),), tuple(records)), NOTHING).gpus
    assert gpu.spark == plot.sparkline([100.0 + n for n in range(9, gpus.TREND + 9)])


def test_of_many_updates_it_says_how_many_lines_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = [record(n, gpu_uuid=f"GPU-{k}", driver=str(n)) for k in range(3) for n in range(2)]
    assert "more lines are left out" not in made(*records)
    monkeypatch.setattr(html_render, "MOST_UPDATED", 2)
    assert "1 more lines are left out here" in made(*records)


def test_evidence_of_the_host_stands_at_its_only_gpu_or_at_all_of_them_together() -> None:
    two = replace(RESULT, gpus=tuple(replace(RESULT.gpus[0], uuid=f"GPU-{n}") for n in range(2)))
    one_row = row(GpuLine("g", "GPU-0", "PASS"))
    two_row = row(*(GpuLine("g", f"GPU-{n}", "PASS") for n in range(2)))
    alone = page(Material(MADE, (one_row,), (), {"gpu-a": RESULT}), NOTHING)
    several = page(Material(MADE, (two_row,), (), {"gpu-a": two}), NOTHING)
    names = [[check.name for check in gpu.checks] for gpu in (*alone.gpus, *several.gpus)]
    assert names == [["offload", "library_origin"], ["library_origin"], ["offload"], ["offload"]]


def test_each_change_has_what_was_before_it_and_after_and_the_answer() -> None:
    rates = [150.0] * 4 + [120.0] * 4 + [119.0]
    records = [
        record(n, median_ts=rate + n / 10, driver=str(n // 4), busy=("in use",) if n == 8 else ())
        for n, rate in enumerate(rates)
    ]
    table = made(*records).split("What changed")[1].split("</table>")[0]
    cells = [Read(cell).text for cell in re.findall('<td class="wide">(.*?)</td>', table)]
    first, told, second, untold = cells
    assert (first, second) == ("driver 0 → 1", "driver 1 → 2")
    assert told.startswith("150.1 (4) → 120.5 (4): slower -19.7 % (-")
    assert untold == "120.5 (4) → - (0): expected a figure of a free and healthy GPU on both sides"


def test_a_phase_has_one_colour_in_all_builds() -> None:
    """Also where one build skipped what another did."""
    whole = Built(143.0, phases={"resolve": 7.0, "compile": 130.0, "check": 6.0})
    taken = Built(8.0, phases={"resolve": 7.0, "check": 1.0})
    rows = row(built=whole), row(built=taken, host="gpu-b"), row(built=Built(), host="gpu-c")
    shown = page(Material(MADE, rows, ()), NOTHING)
    assert [one.host for one in shown.builds] == ["gpu-a", "gpu-b"]
    drawn = [re.findall('class="(p.)"', one.svg) for one in shown.builds]
    assert drawn == [["p0", "p1", "p2"], ["p0", "p2"]]


def test_only_gpus_of_one_model_and_setting_stand_in_one_distribution() -> None:
    records = [record(gpu_uuid=f"GPU-{n}") for n in range(3)]
    records += [record(gpu_uuid="GPU-x", gpu_info="NVIDIA H200", median_ts=360.0)]
    records += [record(gpu_uuid="GPU-y", busy=("in use",), median_ts=20.0)]
    shown = page(Material(MADE, (), tuple(records)), NOTHING)
    assert [(group.gpus, group.low, group.high) for group in shown.groups] == [(3, 150.0, 150.0)]


def test_the_example_says_on_its_page_what_of_it_is_made_up() -> None:
    made = example()
    notes = NOTES
    text = Read(
        render(Material(MADE, made.run.rows, made.records, made.results, notes=notes), NOTHING)
    ).text
    for note in NOTES:
        assert note in text


@pytest.mark.parametrize(
    "changed",
    [
        {"median_ts": float("inf")}, {"median_ts": float("nan")}, {"median_ts": 0.0},
        {"median_ts": -1e308}, {"median_ts": 1e308}, {"stddev_ts": float("inf")},
        {"test_time": datetime.max.replace(tzinfo=timezone.utc)},
        {"test_time": datetime.min.replace(tzinfo=timezone.utc)},
    ],
)  # fmt: skip
def test_a_figure_that_no_gpu_reaches_costs_the_others_nothing(changed: dict[str, Any]) -> None:
    """One host could else take the report from the whole fleet."""
    text = made(record(0), record(1), record(2, **changed))
    (series,) = data(text)["series"].values()
    assert series["rate"] == [150.0, 150.0]
    assert "1 figure that can't be one is left out" in Read(text).text


def test_nothing_is_said_to_be_left_out_where_nothing_is() -> None:
    assert "left out" not in Read(made(record(0), record(1))).text.split("Words")[0]
