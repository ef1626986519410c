"""The page as text: what is on it, and what no host's words can put there."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from datetime import datetime, timezone
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import pytest

from llamafleet.history.example import NOTES, example
from llamafleet.history.html.render import render
from llamafleet.history.html.view import Compared, Judges, Material, Slow, page
from llamafleet.history.record import Record
from llamafleet.history.series import GpuKey
from llamafleet.history.store import GpuLine, Row
from llamafleet.protocol.result import Check
from tests.history import RESULT
from tests.history.html.fleets import record

MADE = datetime(2026, 11, 26, 22, 0, tzinfo=timezone.utc)
NOBODY = Judges(
    slow=lambda records: (),
    compared=lambda before, after: Compared("slower", "by a measured 4 %"),
    roofline=lambda record: None,
    bands=lambda record: (),
)
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


def made(*records: Record, rows: tuple[Row, ...] = (), judges: Judges = NOBODY) -> str:
    return render(Material(MADE, rows or (row(),), records, {"gpu-a": RESULT}), judges)


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
    assert not re.search(r"url\(|@import|https?://", text)


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
    bands = (f"band{note}",)
    return render(material, replace(NOBODY, bands=lambda _: bands, slow=lambda _: slow(note)))


def test_what_hosts_say_stays_a_text() -> None:
    plain, hostile = of_words(""), of_words(HOSTILE)
    assert [tag for tag, _ in Read(hostile).elements] == [tag for tag, _ in Read(plain).elements]
    assert hostile.replace("\n", "").isprintable()
    assert hostile.count("<script") == 2
    assert "onerror" in Read(hostile).text, "the words did not reach the page"


def with_check(note: str) -> Any:
    check = Check(f"offload{note}", "fail", f"found{note}", f"expected{note}", f"next{note}")
    gpu = replace(RESULT.gpus[0], uuid=f"GPU-1{note}", checks=(check,))
    return replace(RESULT, host=f"gpu-a{note}", gpus=(gpu,))


def slow(note: str) -> list[Slow]:
    return [Slow(GpuKey(f"GPU-1{note}", "", 1), "tg", f"slow{note}")]


def test_what_is_asked_for_is_on_the_page() -> None:
    drivers = ["575.57.08"] * 3 + ["580.95.05"] * 3
    records = [record(n, driver=driver) for n, driver in enumerate(drivers)]
    result = replace(RESULT, gpus=(replace(RESULT.gpus[0], uuid="GPU-1"),))
    judges = replace(NOBODY, slow=lambda _: slow(""), roofline=lambda _: 0.73)
    material = Material(MADE, (row(),), tuple(records), {"gpu-a": result})
    text = Read(render(material, judges)).text
    for wanted in (
        "1 hosts", "SLOW", "slow", "73 %",  # at a glance
        "driver 575.57.08 -> 580.95.05", "slower by a measured 4 %", "150.0 (3)",  # the update
        "Evidence: 2 checks", "33 of 33 layers", "4 libraries",
    ):  # fmt: skip
        assert wanted in " ".join(text.split()), wanted


def test_a_driver_update_is_first_class_and_another_change_is_not_one() -> None:
    def updates(**changed: str) -> int:
        shown = page(
            Material(MADE, (row(),), (record(0), record(1, **changed))),
            NOBODY,
        )
        return len(shown.updates)

    assert updates(driver="580.95.05") == 1
    assert updates(fingerprint="fedcba9876543210") == 0


def test_the_worst_comes_first_then_who_is_slow() -> None:
    rows = tuple(
        row(GpuLine("g", f"GPU-{host}", verdict, 1.0, 1.0), host=host, verdict=verdict)
        for host, verdict in (("a", "PASS"), ("b", "PASS"), ("c", "BUSY"), ("d", "FAIL"))
    )
    judges = replace(NOBODY, slow=lambda _: [Slow(GpuKey("GPU-b", "", 1), "tg", "slow")])
    shown = page(Material(MADE, rows, ()), judges)
    assert [gpu.host for gpu in shown.gpus] == ["d", "c", "b", "a"]
    assert shown.hosts == {"FAIL": 1, "BUSY": 1, "PASS": 2}


def test_a_host_without_a_gpu_and_a_gpu_without_a_row_are_on_the_page() -> None:
    unreached = Row(host="gpu-b", verdict="NOT VERIFIED", reason=("run: found no end",))
    gone = record(gpu_uuid="GPU-gone", host="gpu-c")
    shown = page(Material(MADE, (row(), unreached), (record(), gone)), NOBODY)
    assert [(gpu.host, gpu.verdict) for gpu in shown.gpus] == [
        ("gpu-b", "NOT VERIFIED"), ("gpu-a", "PASS"), ("gpu-c", ""),
    ]  # fmt: skip
    text = Read(made(gone, rows=(row(), unreached))).text
    assert "not in a run" in text
    assert "run: found no end" in text


def test_of_several_gpus_each_has_a_line_and_all_together_one() -> None:
    gpus = [GpuLine("g", f"GPU-{n}", "PASS", 1.0, 1.0) for n in range(2)]
    together = record(gpu_uuid="", gpus=2)
    shown = page(Material(MADE, (row(*gpus),), (together,)), NOBODY)
    assert [gpu.name for gpu in shown.gpus] == ["all 2 GPUs together", "g", "g"]
    assert shown.gpus[0].tg == 150.0
    assert sum(shown.counted.values()) == 2


def test_an_empty_fleet_says_that_nothing_is_proven() -> None:
    text = render(Material(MADE, (), ()), NOBODY)
    assert "nothing is proven" in text


def test_figures_of_a_gpu_that_was_not_free_stand_in_brackets() -> None:
    assert "(150.0)" in made(record(busy=("in use",)))
    assert "(150.0)" not in made(record())


def test_runs_and_results_are_there_to_copy() -> None:
    found = data(made(record(0), record(1, busy=("in use",))))
    assert found["results"]["gpu-a"]["gpus"][0]["uuid"] == "GPU-0"
    (series,) = found["series"].values()
    assert series["rate"] == [150.0, 150.0]
    assert [series["texts"][n] for n in series["busy"]] == ["", "in use"]
    assert [series["texts"][n] for n in series["driver"]] == ["575.57.08"] * 2


def test_only_gpus_of_one_model_and_setting_stand_in_one_distribution() -> None:
    records = [record(gpu_uuid=f"GPU-{n}") for n in range(3)]
    records += [record(gpu_uuid="GPU-x", gpu_info="NVIDIA H200", median_ts=360.0)]
    records += [record(gpu_uuid="GPU-y", busy=("in use",), median_ts=20.0)]
    shown = page(Material(MADE, (), tuple(records)), NOBODY)
    assert [(group.gpus, group.low, group.high) for group in shown.groups] == [(3, 150.0, 150.0)]


def test_the_example_says_on_its_page_what_of_it_is_made_up() -> None:
    made = example()
    notes = NOTES
    text = Read(
        render(Material(MADE, made.run.rows, made.records, made.results, notes=notes), NOBODY)
    ).text
    for note in NOTES:
        assert note in text
