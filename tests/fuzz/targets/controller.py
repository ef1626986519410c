"""What the controller reads: what was fetched, kept, collected or written by people."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from llamafleet.history.html.render import render
from llamafleet.history.html.view import Material
from llamafleet.history.llama_bench import line_of, read_file, record_of, row_of
from llamafleet.history.record import Record
from llamafleet.history.records import records_of
from llamafleet.history.report import render_line, render_run
from llamafleet.history.runs import RunError, Runs, as_json
from llamafleet.history.store import Row, Store, read_result
from llamafleet.history.window import WindowError, parse
from llamafleet.inventory import SettingsError, validate_fleet
from llamafleet.oncalendar import is_calendar
from llamafleet.onhost.toolkit.openpgp import armored, fingerprints
from llamafleet.onhost.toolkit.openpgp import read as read_keys
from llamafleet.protocol.job import JobStatus, Progress, Stamp
from llamafleet.protocol.result import Result
from llamafleet.protocol.serve import Answer, Placement, Status
from llamafleet.received import LIMIT, received, received_result, received_text
from llamafleet.settings import Settings
from llamafleet.supplied import credentials
from llamafleet.tables import parse_version
from llamafleet.tables.rows import Row as TableRow
from llamafleet.tables.rows import TableError, _load
from llamafleet.wheelhouse.index import _links
from llamafleet.wheelhouse.manifest import MANIFEST, WheelhouseError, build_command, read, verify
from llamafleet.wheelstore import RECORD, WheelStore
from tests.cli import run
from tests.fuzz import Target
from tests.fuzz.material import DEEP, HOSTILE, documents, dumped, encoded, objects, texts, words
from tests.fuzz.targets.facts import BASES as SNAPSHOTS
from tests.fuzz.targets.facts import KNOWN as KNOWN_SNAPSHOTS
from tests.history import RESULT, VERSION_1
from tests.history.html.fleets import NOTHING
from tests.history.html.test_render import MADE
from tests.history.test_llama_bench import REAL as BENCH_FILE

RECORDED = Path(__file__).parents[2] / "protocol" / "data" / "version-1"


def recorded(pattern: str) -> list[Any]:
    """Files as hosts wrote them."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(RECORDED.glob(pattern))]


def plain(data: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(data))


RESULTS = [plain(asdict(RESULT)), VERSION_1]
STAMPS, PROGRESS = recorded("*-stamp.json"), recorded("*progress.json")
STATUSES = [
    {"state": "running", "progress": PROGRESS[0], "stamp": None, "unreadable": ""},
    {"state": "failed", "progress": None, "stamp": STAMPS[0], "unreadable": ""},
]
ESCAPE = "\x1b[2J\nhost PASS"


def _changed(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**data, **changes}


# -- what was fetched ------------------------------------------------------------------------------


def _result(data: Any, _: Path) -> object:
    return received_result(data)


def _of_jobs(data: Any, _: Path) -> object:
    return [received(kind, data) for kind in (Stamp, Progress, JobStatus)]


def _text(text: str, _: Path) -> object:
    return [received_text(kind, text) for kind in (Result, Stamp, Progress, JobStatus)]


def _reported(data: Any, folder: Path) -> object:
    """The result of a host, all the way to the table: printed, kept, and read again."""
    result = received_result(data)
    if not isinstance(result, Result):
        return result
    path = Store(folder).write_result("gpu-a", result)
    again = read_result(path)
    assert again == result, f"kept as {again!r:.200}"
    return None


def _recorded(data: Any, _: Path) -> object:
    """The figures of a result as the history keeps them."""
    result = received_result(data)
    if not isinstance(result, Result):
        return result
    try:
        found = records_of(result)
    except ValueError as error:  # As documented, of a time alone.
        return str(error)
    return [(plain(asdict(replace(one, test_time=NEVER)))) for one in found if kept(one)]


def _paged(data: Any, _: Path) -> object:
    """The result of a host on the page of the fleet: its words make no element there."""
    result = received_result(data)
    if not isinstance(result, Result):
        return result
    try:
        found = records_of(result)
    except ValueError as error:
        return str(error)
    rows = (Row.of("gpu-a", result, [], []),)
    text = render(Material(MADE, rows, found, {"gpu-a": result}), NOTHING)
    assert text.count("<script") == 2
    assert text.count("<html") == text.count("<body") == 1
    return text.replace("\n", "")


NEVER: Any = None


def kept(record: Record) -> bool:
    """A database takes each of its numbers."""
    numbers = [value for value in asdict(record).values() if type(value) is int]
    assert all(abs(number) < 2**63 for number in numbers), numbers
    return True


BENCH_ROWS = [json.loads(line) for line in BENCH_FILE.read_text("utf-8").splitlines()]
BENCH_ROWS += [plain(row_of(one)) for one in records_of(RESULT)]


def _benched(text: str, folder: Path) -> object:
    """Each line comes in or is named, and goes out again."""
    (folder / "bench.jsonl").write_bytes(encoded(text))
    found = list(read_file(folder / "bench.jsonl", "box"))
    for one in found:
        if isinstance(one, Record):
            assert kept(one)
            again = record_of(line_of(one), "box", one.source)
            assert isinstance(again, Record)
            # What the file left out is there now.
            assert record_of(line_of(again), "box", one.source) == again
    return [one if isinstance(one, str) else plain(row_of(one)) for one in found]


WINDOWS = ["now-7d:now", "2026-11-01T12:30:2026-11-02T00:00:00Z", ":now-1w"]


def _window(text: str, _: Path) -> object:
    begin, end = parse(text, datetime(2026, 11, 26, tzinfo=timezone.utc))
    assert begin is None or end is None or begin < end
    return None


SERVICE = plain(asdict(Status(1, "chat", "ready", 1.5, 7, placement=Placement(-1, 512))))
ANSWERS = [SERVICE, {"version": 1, "state": "ready", "ok": True, "problem": "", "status": SERVICE}]


def _of_services(data: Any, _: Path) -> object:
    return [received(kind, data) for kind in (Status, Answer)]


RECEIVED = (
    Target(
        "what a service tells and answers",
        ("received:received",),
        objects(ANSWERS),
        _of_services,
        known=(
            _changed(SERVICE, reason=ESCAPE),
            _changed(SERVICE, state=["ready"]),
            _changed(SERVICE, pid=10**400),
        ),
    ),
    Target(
        "a result",
        ("received:received_result", "protocol.result:upgraded"),
        objects(RESULTS),
        _result,
        known=(
            _changed(RESULTS[0], host=ESCAPE),
            _changed(RESULTS[0], finished=10**30),
            _changed(RESULTS[0], finished=float("nan")),
            _changed(RESULTS[0], version=3),
            _changed(VERSION_1, system={"gpus": 5}),
            _changed(VERSION_1, checks=5),
        ),
    ),
    Target(
        "a stamp, a job's progress and status",
        ("received:received",),
        objects([*STAMPS, *PROGRESS, *STATUSES]),
        _of_jobs,
        known=(
            _changed(STAMPS[0], phases={ESCAPE: 1.0}),
            _changed(STAMPS[0], key=5),
            _changed(PROGRESS[0], line=ESCAPE, phase=ESCAPE),
            _changed(PROGRESS[0], pid=10**400),
        ),
    ),
    Target(
        "JSON text from a host",
        ("received:received_text",),
        documents([*STAMPS, *PROGRESS]),
        _text,
        known=(*DEEP, " " * (LIMIT + 1), "9" * 50_000, '{"version": ' + "9" * 50_000),
    ),
    Target(
        "a result that is kept",
        ("history.store:read_result", "history.store:Store"),
        objects(RESULTS),
        _reported,
        share=0.5,
    ),
    Target(
        "records of a result",
        ("history.records:records_of",),
        objects(RESULTS),
        _recorded,
        known=(_changed(RESULTS[0], finished=1e300),),
    ),
    Target(
        "a result on the page",
        ("history.html.render:render",),
        objects(RESULTS),
        _paged,
        known=(_changed(RESULTS[0], finished=253402300799.0),),
        share=0.25,
    ),
    Target(
        "a file of llama-bench",
        ("history.llama_bench:read_file", "history.llama_bench:record_of"),
        documents(BENCH_ROWS),
        _benched,
        known=(*DEEP, "\x1b[2J", '{"n_prompt": ' + "9" * 50_000),
    ),
    Target("a window of time", ("history.window:parse",), texts(WINDOWS), _window, (WindowError,)),
)

# -- what was kept ---------------------------------------------------------------------------------

RUN_ID = "20261125T010203.000004Z-0a1b"
RUN = {
    "version": 2,
    "id": RUN_ID,
    "started": "2026-11-25T01:02:03Z",
    "command": ["pyinfra", "-y", "inventory", "deploy.py"],
    "hosts": ["gpu-a", "gpu-b"],
    "fleet": 2,
    "waves": [["gpu-a", "gpu-b"]],
    "state": "complete",
    "finished": "2026-11-25T02:02:03Z",
    "rows": [plain(asdict(Row(host="gpu-a", verdict="PASS", pp=1.5, tg=2.5, gpu="2x RTX")))],
}
BEFORE = {"version": 1, "rows": RUN["rows"]}


def _kept(folder: Path, path: str, text: str) -> Runs:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(encoded(text))
    return Runs(folder)


def _said(runs: Runs) -> object:
    """As `llamafleet report` says it, last and all. Nothing is raised where runs are there."""
    found = list(runs.newest_first())
    last, errors = runs.last()
    lines = [str(error) for error in errors]
    for one in found:
        if isinstance(one, RunError):
            lines.append(str(one))
        else:
            lines += [render_line(one), *render_run(one).split("\n")]
            json.dumps(as_json(one))
    return [lines, last and last.id]


def _run(text: str, folder: Path) -> object:
    return _said(_kept(folder, f"runs/{RUN_ID}.json", text))


def _before(text: str, folder: Path) -> object:
    return _said(_kept(folder, "last-run.json", text))


def _stored(text: str, folder: Path) -> object:
    path = folder / "one.json"
    path.write_bytes(encoded(text))
    return read_result(path)


def _wanted(prefix: str, folder: Path) -> object:
    _kept(folder, f"runs/{RUN_ID}.json", json.dumps(RUN))
    return Runs(folder).find(prefix).id


WHEEL = {
    "host": "gpu-a",
    "name": "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl",
    "sha256": "a" * 64,
    "size": 44_800_000,
    "libraries": {"llama_cpp/lib/libllama.so": "b" * 64},
    "needs": ["AVX2", "FMA"],
    "nvcc": "13.0.88",
}


def _wheel(text: str, folder: Path) -> object:
    """Its record; what counts as one names a file in that very folder."""
    key = "0123456789abcdef"
    _kept(folder, f"{key}/{RECORD}", text)
    found = WheelStore(folder).all()
    for wheel in found.values():
        assert WheelStore(folder).file(key, wheel).parent == folder / key
    return found


KEPT = (
    Target(
        "the record of a shared wheel",
        ("wheelstore:WheelStore", "plans.share:unsound"),
        documents([WHEEL]),
        _wheel,
        known=(
            *DEEP,
            dumped(_changed(WHEEL, name="../../x.whl")),
            dumped(_changed(WHEEL, host=ESCAPE)),
            dumped(_changed(WHEEL, size=10**400)),
            dumped(_changed(WHEEL, needs=[ESCAPE])),
        ),
        share=0.5,
    ),
    Target(
        "a kept run",
        ("history.runs:Runs", "history.report:render_run"),
        documents([RUN]),
        _run,
        known=(
            *DEEP,
            dumped(_changed(RUN, rows=[{"host": ESCAPE, "verdict": "PASS"}])),
            dumped(_changed(RUN, started="9999-12-31T23:59:59+00:00", finished=None)),
            dumped(_changed(RUN, started="0001-01-01T00:00:00+14:00")),
            dumped(_changed(RUN, id=ESCAPE)),
            dumped(_changed(RUN, version=float("inf"))),
            dumped(_changed(RUN, fleet=10**400)),
            dumped(_changed(RUN, rows=[{"host": "a", "verdict": "PASS", "pp": float("nan")}])),
            '{"version": ' + "9" * 50_000 + "}",
            "\ufeff{}",
        ),
    ),
    Target(
        "last-run.json of before runs were kept",
        ("history.runs:Runs",),
        documents([BEFORE]),
        _before,
        known=DEEP,
        share=0.5,
    ),
    Target(
        "a stored result",
        ("history.store:read_result",),
        documents(RESULTS),
        _stored,
        known=(*DEEP, "\ud800", "9" * 50_000),
        share=0.5,
    ),
    Target("a run's id", ("history.runs:Runs",), words, _wanted, (RunError,), share=0.3),
)

# -- what was collected and written ----------------------------------------------------------------


MANIFESTS = [
    {
        "version": 1,
        "created": 0,
        "files": {"a.whl": {"sha256": "0" * 64, "bytes": 5}},
        "pythons": ["3.12"],
        "arches": ["x86_64"],
        "toolkits": ["13.0"],
        "slim": True,
        "llama": {"version": "0.3.36", "sha256": "0" * 64, "source_sha256": "0" * 64},
    }
]


def _manifest(text: str, folder: Path) -> object:
    (folder / MANIFEST).write_bytes(encoded(text))
    (folder / "a.whl").write_text("a.whl")
    problems = verify(folder)
    house = read(folder)
    return [house, build_command(house, python="3.13"), problems]


CHOICES: dict[str, list[Any]] = {
    "scope": ["system", "user"],
    "accelerator": ["cuda", "cpu", "auto"],
    "compute_capabilities": [["8.9"], "9.0", 8.9],
    "toolkit_version": ["13.0", 13.0],
    "toolkit_url": ["https://mirror.example/cuda"],
    "toolkit_root": ["/usr/local/cuda"],
    "cmake_options": [{"LLAVA_BUILD": "ON"}, {"-D": 1}, {"CMAKE_INSTALL_RPATH": "$ORIGIN"}],
    "model": ["auto", "/m.gguf", "synthetic:tiny-q4_0"],
    "verify_schedule": ["weekly", "Mon *-*-* 00:00:00", "*:0/15", "sometimes", None],
    "index_url": ["https://pypi.example/simple", "https://user:word@pypi.example/simple"],
    "jobs": [4],
    "context": [4096],
    "x_mine": [1],
    "ssh_user": ["lab"],
}
UNREAD = ("wheelhouse", "toolkit_key", "netrc", "proxy")
"""Of these the first three name files of this machine; they are tried with names that are none."""

_value: st.SearchStrategy[Any] = st.one_of(
    words,
    st.none() | st.booleans() | st.integers() | st.floats(),
    st.lists(words, max_size=2),
    st.dictionaries(words, words | st.integers(), max_size=2),
    st.binary(max_size=5),
    st.tuples(words),
)
_keys = st.sampled_from([*CHOICES, *Settings.model_fields]) | words


@st.composite
def _inventory(draw: st.DrawFn) -> dict[str, dict[Any, Any]]:
    data: dict[Any, Any] = {}
    for key in draw(st.lists(_keys, max_size=5)):
        sound = st.sampled_from(CHOICES[key]) if key in CHOICES else st.nothing()
        data[key] = draw(sound | _value)
        if key in UNREAD and isinstance(data[key], str):
            data[key] = "/nonexistent/" + data[key].replace("..", "")
    return {draw(st.sampled_from(["gpu-a", "@local"]) | words): data}


def _fleet(data: dict[str, Any], _: Path) -> object:
    return list(validate_fleet(data).values())


BINARY_KEY = b"\x98\x06\x04\x00\x00\x00\x00\x01"
"""The packet of a key that could sign nothing: version, time and algorithm alone."""
PUBLIC_KEY = (
    "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n"
    f"{base64.b64encode(BINARY_KEY).decode()}\n-----END PGP PUBLIC KEY BLOCK-----\n"
)
PACKETS = (BINARY_KEY, b"\xc6", b"\xff" * 5, b"\x99\0\0")


def _keyring(data: bytes, _: Path) -> object:
    """What is written for apt and rpm holds the keys that were read, and no other."""
    keys = read_keys(data)
    assert fingerprints(armored(keys)) == fingerprints(data)
    return fingerprints(data)


PAGE = '<html><a href="../../files/a-1.0.tar.gz#sha256=0">a-1.0.tar.gz</a> <a href="/b">b</a>'
PAGE_AS_JSON = {"files": [{"filename": "a-1.0.tar.gz", "url": "../../files/a-1.0.tar.gz"}]}


def _page(text: str, _: Path) -> object:
    """Not by its callers, which would follow what the page says."""
    return list(_links(encoded(text), "https://index.example/simple/a/"))


def _calendar(text: str, _: Path) -> object:
    return is_calendar(text)


def _netrc(text: str, folder: Path) -> object:
    path = folder / "netrc"
    path.touch(mode=0o600)
    path.write_bytes(encoded(text))
    return credentials(path).split("\n")


class _Form(TableRow):
    rows: tuple[str, ...] = ()


def _table(text: str, _: Path) -> object:
    return _load("fuzzed.yaml", text, _Form)


def _version(text: str, _: Path) -> object:
    return parse_version(text)


WRITTEN = (
    Target(
        "a wheelhouse's manifest",
        ("wheelhouse.manifest:load", "wheelhouse.manifest:verify"),
        documents(MANIFESTS),
        _manifest,
        (WheelhouseError,),
        known=(
            *DEEP,
            "\ud800",
            dumped(_changed(MANIFESTS[0], created=float("inf"))),
            dumped(_changed(MANIFESTS[0], created="9" * 5000)),
            dumped(_changed(MANIFESTS[0], pythons=5)),
            dumped(_changed(MANIFESTS[0], pythons=[5])),
            dumped(_changed(MANIFESTS[0], files={ESCAPE: {"sha256": 5, "bytes": "x"}})),
            dumped(_changed(MANIFESTS[0], files={"a.whl": {"sha256": None, "bytes": None}})),
            dumped(_changed(MANIFESTS[0], llama={"version": 1, "sha256": 2, "source_sha256": 3})),
        ),
        printable=False,
    ),
    Target(
        "an inventory",
        ("inventory:validate_fleet",),
        _inventory(),
        _fleet,
        (SettingsError,),
        known=(
            {"a": {"verify_schedule": "sometimes"}},
            {"a": {"wheelhouse": "~nouser"}},
            {"a": {"wheelhouse": "\0"}},
            {"a": {"wheelhouse": "/nonexistent/\ud800"}},
            {"a": {"toolkit_key": "/nonexistent/" + "a" * 5000}},
            {"a": {5: 5, None: 1}},
            {"a": {"compute_capabilities": None}},
            {"a": {"compute_capabilities": ["٨.٩"]}},
            {"a": {"toolkit_version": "9" * 5000 + ".0"}},
            {"a": {"jobs": 10**5000}},
            {"a": {"cmake_options": {"X": ESCAPE}}},
        ),
        share=0.6,
    ),
    Target(
        "a public key",
        ("onhost.toolkit.openpgp:fingerprints", "onhost.toolkit.openpgp:armored"),
        st.one_of(
            texts([PUBLIC_KEY]).map(encoded),
            st.binary(max_size=300),
            st.lists(st.sampled_from(PACKETS)).map(b"".join),
        ),
        _keyring,
        (ValueError,),
        known=(
            b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n" * 20_000,
            (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n" + b"\n" * 100_000),
            b"\x98\x00" * 100_000,
            BINARY_KEY * 20_000,
        ),
    ),
    Target(
        "an index's page",
        ("wheelhouse.index:_links",),
        texts([PAGE, json.dumps(PAGE_AS_JSON)]),
        _page,
        (ValueError,),
        known=(
            *DEEP,
            '{"files": 5}',
            '{"files": [5]}',
            "<a href=" * 10_000,
            "<" * 40_000,
            "\ud800",
        ),
        printable=False,
        share=0.5,
    ),
    Target(
        "a time of the timer",
        ("oncalendar:is_calendar",),
        texts(["weekly", "Mon..Fri *-*-1/2 00:00:00/5 Europe/Berlin", "*:0/15", "2026-02~03 UTC"]),
        _calendar,
        known=("9" * 40_000, "1," * 20_000, "Mon " * 10_000, "*-" * 20_000, " " * 40_000),
        share=0.5,
    ),
    Target(
        "a netrc file",
        ("supplied:credentials",),
        texts(["machine a.example login lab password x\n# none\nmachine b login c password d\n"]),
        _netrc,
        (ValueError,),
        known=("\ud800", "machine " * 5000, "macdef x\n" * 5000, 'machine "' + "\\" * 40_000, "\0"),
        share=0.5,
    ),
    Target(
        "a table",
        ("tables.rows:load",),
        texts(["rows:\n- one\n- two\n", "rows: [one, two]\n", "a: &a [1]\nrows: *a\n"]),
        _table,
        (TableError,),
        known=("[" * 5000, "rows: 2026-01-01", "rows: !!python/object:os.system x", "? {}\n: 1"),
        printable=False,
        share=0.5,
    ),
    Target(
        "a dotted version",
        ("tables:parse_version",),
        texts(["580.65.06", "13.0"]),
        _version,
        known=("9" * 40_000, "1." * 40_000),
        share=0.5,
    ),
)

# -- the commands ----------------------------------------------------------------------------------


def _command(*arguments: object, stdin: str | None = None) -> list[str]:
    """What a command says; its exit status is one of those that are documented."""
    done = run(*arguments, stdin=stdin)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, 1, 2), done.exit_code
    return done.output.split("\n")


def _command_plan(text: str, folder: Path) -> object:
    file = folder / "host.snapshot"
    file.write_bytes(encoded(text))
    return [_command("plan", file), _command("plan", file, "--json", "--set", "accelerator=cpu")]


def _command_report(text: str, folder: Path) -> object:
    _kept(folder, f"runs/{RUN_ID}.json", text)
    options = ("--results", folder)
    return [
        _command("report", *options),
        _command("report", *options, "--json"),
        _command("report", *options, "--run", "all"),
    ]


def _command_wheelhouse(text: str, folder: Path) -> object:
    (folder / MANIFEST).write_bytes(encoded(text))
    return _command("wheelhouse", "check", folder)


def _command_settings(pair: tuple[str, str], _: Path) -> object:
    """`--set KEY=VALUE`: nothing else is read, so that no host is."""
    key, value = pair
    text = SNAPSHOTS[0]
    return _command("plan", "-", "--set", f"{key}={value}", stdin=text)


COMMANDS = (
    Target(
        "llamafleet plan FILE",
        ("cli.plan:plan",),
        texts(SNAPSHOTS),
        _command_plan,
        known=KNOWN_SNAPSHOTS,
        share=0.25,
        limit_s=2.0,
    ),
    Target(
        "llamafleet report",
        ("cli.report:report",),
        documents([RUN]),
        _command_report,
        known=DEEP,
        share=0.4,
    ),
    Target(
        "llamafleet wheelhouse check",
        ("cli.wheelhouse:check",),
        documents(MANIFESTS),
        _command_wheelhouse,
        known=DEEP,
        share=0.4,
    ),
    Target(
        "llamafleet plan --set",
        ("cli.plan:plan",),
        st.tuples(st.sampled_from([*CHOICES, "x"]), st.sampled_from(HOSTILE) | words),
        _command_settings,
        known=(("jobs", "9" * 5000), ("jobs", "[" * 500), ("model", "\0")),
        share=0.3,
    ),
)

TARGETS = (*RECEIVED, *KEPT, *WRITTEN, *COMMANDS)
