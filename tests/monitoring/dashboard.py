"""Makes docs/monitoring/dashboard.json, with Grafana's own library of what a dashboard may say.

`python -m tests.monitoring.dashboard` writes it anew.
"""

from __future__ import annotations

import json

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LineInterpolation,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    GridPos,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tests.monitoring import DASHBOARD

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HOSTS = 'instance=~"$instance"'
RATE = "llamafleet_benchmark_tokens_per_second"
NAMED = f"{RATE}{{{HOSTS}}} * on (instance, job, gpu) group_left (name) llamafleet_gpu_info"
PEERS = "name, test, tokens, model"
OF_MEDIAN = (
    f"({NAMED}) / on ({PEERS}) group_left () quantile by ({PEERS}) (0.5, "
    f"{RATE} * on (instance, job, gpu) group_left (name) llamafleet_gpu_info)"
)
"""All peers count, also those that are not shown."""
STATES = {"PASS": "green", "CPU ONLY": "blue", "BUSY": "yellow", "NOT VERIFIED": "orange"}
STATES |= {"FAIL": "red"}
STATE = " or ".join(
    f'{number} * llamafleet_verdict{{verdict="{verdict}", {HOSTS}}}'
    for number, verdict in enumerate(STATES)
)
CHANGES = {"driver": "orange", "toolkit": "purple", "fingerprint": "blue"}
INFO = "driver, cuda, toolkit, llama_cpp_python, fingerprint, model"


def query(
    expr: str, legend: str = "", *, instant: bool = False, as_table: bool = False
) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(expr).legend_format(legend).datasource(SOURCE).ref_id("A")
    made = made.instant() if instant else made.range()
    return made.format(PromQueryFormat.TABLE if as_table else PromQueryFormat.TIME_SERIES)


def at(x: int, y: int, width: int, height: int) -> GridPos:
    """In the grid of 24 columns."""
    return GridPos(x=x, y=y, w=width, h=height)


def steps(*limits: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    made = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE)
    return made.steps([Threshold(value=value, color=color) for value, color in limits])


def counted(title: str, expr: str, legend: str, place: GridPos) -> stat.Panel:
    made = stat.Panel().title(title).datasource(SOURCE).grid_pos(place)
    made = made.graph_mode(BigValueGraphMode.NONE).text_mode(BigValueTextMode.VALUE_AND_NAME)
    made = made.color_mode(BigValueColorMode.VALUE).no_value("none")
    made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    made = made.thresholds(steps((None, "text")))
    for verdict, color in STATES.items():
        fixed = DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})
        made = made.override_by_name(verdict, [fixed])
    return made.with_target(query(expr, legend, instant=True))


def over_time(title: str, expr: str, legend: str, unit: str, place: GridPos) -> timeseries.Panel:
    """Figures of weeks, as steps: each holds until the next verification."""
    made = timeseries.Panel().title(title).datasource(SOURCE).grid_pos(place).unit(unit)
    made = made.line_interpolation(LineInterpolation.STEP_AFTER).fill_opacity(0)
    made = made.show_points(VisibilityMode.NEVER).axis_soft_min(0)
    legend_below = common.VizLegendOptions().display_mode(LegendDisplayMode.TABLE)
    made = made.legend(legend_below.placement("bottom").calcs(["lastNotNull", "min", "max"]))
    return made.with_target(query(expr, legend))


def listed(title: str, expr: str, names: dict[str, str], place: GridPos) -> table.Panel:
    """Labels as columns, in this order."""
    order = {name: number for number, name in enumerate(names)}
    left_out = dict.fromkeys(("Time", "__name__", "job", "host", "bus_id"), True)
    organize = {"excludeByName": left_out, "renameByName": names, "indexByName": order}
    made = table.Panel().title(title).datasource(SOURCE).grid_pos(place)
    made = made.with_transformation(DataTransformerConfig(id_val="organize", options=organize))
    return made.with_target(query(expr, instant=True, as_table=True))


def changed(label: str) -> str:
    """Hosts that had another value within the two days before the last hour: while a verification
    runs, or a driver has none yet, there is no value. A host that is new has changed nothing."""
    info = f"llamafleet_verification_info{{{HOSTS}}}"
    before = f"last_over_time({info}[2d] offset 1h)"
    by = f"count by (instance, {label})"
    return f"{by} ({info}) unless {by} ({before}) and on (instance) {before}"


def verdicts(place: GridPos) -> statetimeline.Panel:
    shown = {
        str(number): ValueMappingResult(text=verdict, color=color, index=number)
        for number, (verdict, color) in enumerate(STATES.items())
    }
    made = statetimeline.Panel().title("Verdict of each host").datasource(SOURCE).grid_pos(place)
    made = made.mappings([ValueMap(options=shown)]).show_value(VisibilityMode.NEVER)
    made = made.merge_values(True).row_height(0.8)
    return made.with_target(query(f"sum by (instance) ({STATE})", "{{instance}}"))


def against_peers(place: GridPos) -> bargauge.Panel:
    made = bargauge.Panel().title("Each GPU against the median of its name").datasource(SOURCE)
    made = made.description(
        "1: the median of all GPUs of that name in the same test with the same model. Red below "
        "0.9, as the alert LlamafleetSlowerThanPeers. Figures of BUSY are none."
    )
    made = made.grid_pos(place).unit("percentunit").min(0.5).max(1.2)
    made = made.orientation(VizOrientation.HORIZONTAL)
    made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    made = made.thresholds(steps((None, "red"), (0.9, "yellow"), (0.95, "green")))
    legend = "{{instance}} {{name}} {{gpu}} {{test}}"
    return made.with_target(query(f"sort({OF_MEDIAN})", legend, instant=True))


HOST_COLUMNS = {
    "instance": "host",
    "verdict": "verdict",
    "driver": "driver",
    "cuda": "CUDA",
    "toolkit": "toolkit",
    "llama_cpp_python": "llama-cpp-python",
    "fingerprint": "build",
    "model": "model",
    "Value": "days since",
}


def made() -> dashboard.Dashboard:
    per_gpu = "{{instance}} {{gpu}}"
    whole = dashboard.Dashboard("llamafleet").uid("llamafleet").tags(["llamafleet", "gpu"])
    whole = whole.description("Verdicts and benchmarks of llamafleet's verifications.")
    whole = whole.time("now-30d", "now").refresh("5m").tooltip(DashboardCursorSync.CROSSHAIR)
    whole = whole.with_variable(
        dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    )
    whole = whole.with_variable(
        dashboard.QueryVariable("instance")
        .label("Hosts")
        .datasource(SOURCE)
        .query("label_values(llamafleet_verified, instance)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
    )
    for label, color in CHANGES.items():
        whole = whole.annotation(
            dashboard.AnnotationQuery()
            .name(f"{label} changes")
            .datasource(SOURCE)
            .enable(True)
            .icon_color(color)
            .expr(changed(label))
        )
    ended = "llamafleet_verification_timestamp_seconds"
    hosts = (
        f"(time() - {ended}{{{HOSTS}}}) / 86400 "
        f"* on (instance, job) group_left ({INFO}) llamafleet_verification_info "
        "* on (instance, job) group_left (verdict) (llamafleet_verdict == 1)"
    )
    red_columns = {"instance": "host", "gpu": "GPU", "check": "check"}
    of_host = f"count by (verdict) (llamafleet_verdict{{{HOSTS}}} == 1)"
    of_gpu = f"count by (verdict) (llamafleet_gpu_verdict{{{HOSTS}}} == 1)"
    drivers = f"count by (driver) (llamafleet_verification_info{{{HOSTS}}})"
    hot = f"llamafleet_benchmark_temperature_celsius{{{HOSTS}}}"
    slow = f"llamafleet_benchmark_throttled_seconds{{{HOSTS}}} > 0"
    panels = (
        counted("Hosts by verdict", of_host, "{{verdict}}", at(0, 0, 8, 5)),
        counted("GPUs by verdict", of_gpu, "{{verdict}}", at(8, 0, 8, 5)),
        counted("Hosts by driver", drivers, "{{driver}}", at(16, 0, 8, 5)),
        verdicts(at(0, 5, 14, 8)),
        listed("Red checks", f"llamafleet_check_failed{{{HOSTS}}}", red_columns, at(14, 5, 10, 8)),
        listed("Hosts with a verdict", hosts, HOST_COLUMNS, at(0, 13, 24, 8)),
        over_time(
            "Token generation, tokens/s",
            f'{RATE}{{{HOSTS}, test="tg"}}',
            per_gpu,
            "none",
            at(0, 21, 12, 10),
        ),
        over_time(
            "Prompt processing, tokens/s",
            f'{RATE}{{{HOSTS}, test="pp"}}',
            per_gpu,
            "none",
            at(12, 21, 12, 10),
        ),
        against_peers(at(0, 31, 24, 10)),
        over_time("Highest temperature while measured", hot, per_gpu, "celsius", at(0, 41, 12, 8)),
        over_time(
            "Throttled while measured", slow, f"{per_gpu} {{{{reason}}}}", "s", at(12, 41, 12, 8)
        ),
    )
    for panel in panels:
        whole = whole.with_panel(panel)
    return whole


def text() -> str:
    return json.dumps(made().build(), indent=1, cls=JSONEncoder) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text(), encoding="utf-8")
