"""Prometheus' text format: whatever a host tells, a page is one that Prometheus reads."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from llamafleet.onhost.exposition import Gauge, page

anything = st.text(max_size=20) | st.sampled_from(('a"b', "a\\", "\\n", "a\nb", "\ud800", "{}"))
number = st.floats() | st.integers(-(10**20), 10**20) | st.none()


def seen(text: str) -> str:
    """What is no Unicode is a question mark."""
    return text.encode("utf-8", "replace").decode()


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(anything, anything, number), max_size=6))
def test_what_was_set_is_read_again(told: list[tuple[str, str, float | None]]) -> None:
    gauge = Gauge("llamafleet_a", "Help.")
    wanted: dict[tuple[tuple[str, str], ...], float] = {}
    for one, two, value in told:
        gauge.set(value, one=one, two=two)
        pairs = (("one", one), ("two", two))
        labels = tuple((name, seen(label)) for name, label in pairs if label)
        if value is not None and math.isfinite(value):
            wanted.setdefault(labels, float(value))
    text = page([gauge]).decode()
    families = list(text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples]
    assert [(tuple(sample.labels.items()), sample.value) for sample in samples] == [*wanted.items()]
    assert [family.type for family in families] == (["gauge"] if wanted else [])


def test_a_series_is_there_once_and_the_first_value_counts() -> None:
    gauge = Gauge("llamafleet_a", "Help.")
    gauge.set(1, gpu="GPU-1")
    gauge.set(2, gpu="GPU-1")
    assert page([gauge]) == (
        b'# HELP llamafleet_a Help.\n# TYPE llamafleet_a gauge\nllamafleet_a{gpu="GPU-1"} 1.0\n'
    )


def test_texts_that_become_the_same_are_one_series() -> None:
    """node_exporter refuses a page with one series twice, and with it all of the machine's."""
    gauge = Gauge("llamafleet_a", "Help.")
    gauge.set(1, gpu="\ud800")
    gauge.set(2, gpu="\udfff")
    gauge.set(3, gpu="?")
    assert page([gauge]).decode().count("llamafleet_a{") == 1


def test_no_value_is_no_family() -> None:
    gauge = Gauge("llamafleet_a", "Help.")
    gauge.set(None)
    gauge.set(math.nan, gpu="1")
    gauge.set(math.inf, gpu="2")
    assert page([gauge]) == b""
