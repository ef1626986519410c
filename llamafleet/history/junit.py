"""A run as JUnit's XML: a suite for each host, a case for the host and for each of its GPUs."""

from __future__ import annotations

from xml.etree import ElementTree

from llamafleet.history.report import proves_nothing
from llamafleet.history.runs import Run
from llamafleet.history.store import GpuLine, Row
from llamafleet.protocol.result import BUSY, GOOD, Verdict
from llamafleet.terminal import printable


def render(run: Run) -> str:
    """A verdict that is not good is a failure. A run without hosts, or without an end, is one
    too: readers of JUnit take an empty file for a success."""
    suites = ElementTree.Element("testsuites", name=f"llamafleet {printable(run.id)}")
    if why := proves_nothing(run):
        _whole(suites, run, why)
    for row in run.rows:
        _suite(suites, row)
    if run.started:
        for suite in suites:  # Jenkins' schema has it of a suite alone.
            suite.set("timestamp", run.started.isoformat())
    _count(suites)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=False)


def _whole(suites: ElementTree.Element, run: Run, why: list[str]) -> None:
    suite = ElementTree.SubElement(suites, "testsuite", name="run")
    case = ElementTree.SubElement(suite, "testcase", classname="run", name=printable(run.id))
    ElementTree.SubElement(case, "failure", type="run", message="; ".join(why))
    _count(suite)


def _suite(suites: ElementTree.Element, row: Row) -> None:
    host = printable(row.host)
    suite = ElementTree.SubElement(suites, "testsuite", name=host)
    properties = ElementTree.SubElement(suite, "properties")
    for name in ("driver", "toolkit", "build", "pp", "tg"):
        if (value := getattr(row, name)) not in (None, ""):
            ElementTree.SubElement(properties, "property", name=name, value=printable(str(value)))
    case = ElementTree.SubElement(suite, "testcase", classname=host, name="host")
    if not row.good:
        _failed(case, row.verdict, [*row.reason, *row.busy])
    for gpu in row.gpus:
        _gpu(suite, host, gpu, row)
    _count(suite)


def _gpu(suite: ElementTree.Element, host: str, gpu: GpuLine, row: Row) -> None:
    """Its reasons stand at the host."""
    name = printable(f"{gpu.name} {gpu.uuid}".strip())
    case = ElementTree.SubElement(suite, "testcase", classname=host, name=name)
    if not (gpu.verdict in GOOD or (gpu.verdict == BUSY and row.allowed)):
        _failed(case, gpu.verdict, [line for line in row.reason + row.busy if gpu.uuid in line])


def _failed(case: ElementTree.Element, verdict: Verdict, lines: list[str]) -> None:
    told = [printable(line) for line in lines]
    message = f"{verdict}: {told[0]}" if told else verdict
    failure = ElementTree.SubElement(case, "failure", type=verdict, message=message)
    failure.text = "\n".join(told)


def _count(element: ElementTree.Element) -> None:
    cases = list(element.iter("testcase"))
    element.set("tests", str(len(cases)))
    element.set("failures", str(sum(case.find("failure") is not None for case in cases)))
