"""The page as text: escaped, and so closed that nothing in it can run but its own script."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llamafleet.history.bands import Bands
from llamafleet.history.html.gather import page
from llamafleet.history.html.lines import why_ring
from llamafleet.history.html.view import MOST_UPDATED, Material, Page, SeriesView, rate
from llamafleet.history.series import toolkit
from llamafleet.history.table import short
from llamafleet.history.words import apart, difference
from llamafleet.terminal import masked_data, printable

HERE = Path(__file__).parent


def render(material: Material, bands: Bands) -> str:
    """One HTML document: no file, host or font beside it is asked for."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"rate": rate, "difference": difference, "apart": apart, "short": short}
    style, script = ((HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    shown = page(material, bands)
    body = environment.get_template("gpu.html.j2")
    # By number: a host's name is not on the page as it is.
    numbers = {host: number for number, host in enumerate(material.results)}
    bodies = {gpu.id: body.render(gpu=gpu, number=numbers.get(gpu.host)) for gpu in shown.gpus}
    written = {gpu.id: Markup(bodies.pop(gpu.id)) for gpu in shown.gpus if gpu.written}
    return environment.get_template("page.html.j2").render(
        page=shown,
        written=written,
        most=MOST_UPDATED,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(_packed({**_data(shown), "gpus": bodies})),
    )


def _shown(value: object) -> object:
    """What hosts and files say, without secrets and with no character that can't be seen."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hash(text: str) -> Markup:
    """As a Content-Security-Policy names a script or a style that may be in the page."""
    return Markup("'sha256-" + base64.b64encode(sha256(text.encode()).digest()).decode() + "'")


def _packed(data: object) -> str:
    """In letters that need no escape in HTML; a tenth of the text."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _data(shown: Page) -> Mapping[str, object]:
    """What the script shows when it is asked: the runs of each plot, and results as they came."""
    series = {one.id: _columns(one) for gpu in shown.gpus for one in gpu.series}
    results = [asdict(result) for result in shown.material.results.values()]
    return {"series": masked_data(series), "results": masked_data(results)}


def _columns(one: SeriesView) -> Mapping[str, Any]:
    """A column for each field: names are told once, and equal texts by their number."""
    texts: dict[str, int] = {}
    across, vertical = one.axes
    records = one.records
    return {
        "axes": [across, vertical],
        "time": [round(record.test_time.timestamp()) for record in records],
        "rate": [record.median_ts for record in records],
        "spread": [record.stddev_ts for record in records],
        **{
            name: [texts.setdefault(text, len(texts)) for text in column]
            for name, column in (
                ("driver", [record.driver for record in records]),
                ("toolkit", [toolkit(record) for record in records]),
                ("build", [record.fingerprint[:8] for record in records]),
                ("busy", [why_ring(record) for record in records]),
            )
        },
        "texts": list(texts),
    }
