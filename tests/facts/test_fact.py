"""The fact within pyinfra: one command for each host, and one bad host is that host's problem."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State

from llamafleet.facts.snapshot import Snapshot, forget, render, snapshot_of
from llamafleet.layout import Layout
from tests.facts.test_reader import GOOD

Connect = Callable[..., list[Host]]


@pytest.fixture
def connect() -> Connect:
    """Hosts whose every command prints the given lines."""

    def hosts(*responses: Any) -> list[Host]:
        data = [
            (
                f"@fake/host-{number}",
                {"fake_responses": {"": response}, "fake_delay": 0, "fake_delay_jitter": 0},
            )
            for number, response in enumerate(responses)
        ]
        return connected(data)

    return hosts


def connected(names: list[Any]) -> list[Host]:
    # pyinfra leaves these two without types.
    state = State(Inventory((names, {})), Config())  # type: ignore[no-untyped-call]
    connect_all(state)
    return list(state.inventory)


def commands(host: Host) -> int:
    connector: Any = host.connector
    return len(connector.executed_commands)


def test_this_machine_through_pyinfra() -> None:
    (host,) = connected(["@local"])
    snapshot = snapshot_of(host, Layout.user("$HOME"), ("/etc/passwd", "$HOME/it's missing"))
    assert (snapshot.error, list(snapshot.files)) == ("", ["/etc/passwd"])


def test_read_once_until_forgotten(connect: Connect) -> None:
    (host,) = connect(GOOD)
    first = snapshot_of(host, Layout.system(), ("/a",))
    assert first.hostname == "gpu-a"
    assert snapshot_of(host, Layout.system(), ("/a",)) is first
    assert commands(host) == 1
    forget(host)
    assert snapshot_of(host, Layout.system(), ("/a",)) == first
    assert commands(host) == 2


def test_other_arguments_are_another_question(connect: Connect) -> None:
    (host,) = connect(GOOD)
    snapshot_of(host, Layout.system(), ("/a",))
    snapshot_of(host, Layout.system(), ("/b",))
    snapshot_of(host, Layout.user("$HOME"), ("/b",))
    snapshot_of(host, Layout.user("$HOME"), ("/b",), ("/opt/cuda-13.0",))
    assert commands(host) == 4


def test_forgetting_what_was_never_read(connect: Connect) -> None:
    (host,) = connect(GOOD)
    forget(host)
    assert commands(host) == 0


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (GOOD[:-1], "found a truncated snapshot"),
        (["sudo: a password is required"], "found 'sudo: a password is required'"),
        ([], "could not be read"),
        ({"success": False, "stderr": "sh: not found"}, "could not be read"),
    ],
    ids=["truncated", "noise", "nothing", "failed"],
)
def test_bad_host_does_not_stop_the_others(connect: Connect, response: Any, said: str) -> None:
    good, bad = connect(GOOD, response)
    assert said in snapshot_of(bad, Layout.system(), ()).error
    assert snapshot_of(good, Layout.system(), ()).error == ""
    assert set(good.state.active_hosts) == {good, bad}
    # A host that hangs would hold up all others once for each stage.
    snapshot_of(bad, Layout.system(), ())
    assert commands(bad) == 1
    forget(bad)
    snapshot_of(bad, Layout.system(), ())
    assert commands(bad) == 2


def test_path_that_can_not_be_passed_on_stays_that_host_s_problem(connect: Connect) -> None:
    (host,) = connect(GOOD)
    snapshot = snapshot_of(host, Layout.system(), (), ("cuda-13.0",))
    assert "found path 'cuda-13.0'" in snapshot.error
    assert commands(host) == 0


def test_no_exception_leaves_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "found a truncated snapshot" in Snapshot().process(GOOD[:5]).error
    monkeypatch.setattr("llamafleet.facts.snapshot.parse", lambda _: int("x"))
    assert "(ValueError: invalid literal" in Snapshot().process(GOOD).error


def test_command_takes_the_layout_as_plain_values() -> None:
    lists = {"files": ("/a", "/b"), "extra": ("/opt/cuda",), "folders": ("/c",)}
    places = {"etc": "/etc/ours", "units": "/units"}
    command = Snapshot().command("user", "$HOME/x y", "/state", **places, **lists)
    # What printf(1) makes of it is the script.
    printed = ["sh", "-c", f"printf '%s\n' {command.removeprefix('eval ')}"]
    script = subprocess.run(printed, capture_output=True, text=True, check=True).stdout
    assert script.startswith(
        "LF_SCOPE=user\nLF_PREFIX='$HOME/x y'\nLF_STATE=/state\nLF_ETC=/etc/ours\n"
    )
    assert "LF_FILES='/a\n/b'\nLF_FOLDERS=/c\n" in script and "LF_EXTRA=/opt/cuda\n" in script
    layout = Layout("user", "$HOME/x y", "/etc/ours", "/state", "/units")
    assert script == render(layout, **lists)
    with pytest.raises(ValueError, match="found scope 'global'"):
        Snapshot().command("global", "/p", "/s", **places)
