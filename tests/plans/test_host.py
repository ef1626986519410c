"""A host that is another one than most: it works, or is one clear problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Tool
from llamafleet.layout import Layout
from llamafleet.plans.host import place_problem
from tests.plans.hosts import GPU_HOST, build_of, only_problem, plan

SYSTEM = Tool("/usr/bin/python3.11", "3.11.2")


def test_a_python_without_its_library() -> None:
    """python3-minimal of Debian."""
    minimal = replace(SYSTEM, lacks=("json", "venv"))
    host = replace(GPU_HOST, pythons=(minimal,), package_manager="apt")
    problem = only_problem(plan(host))
    assert problem.found == "/usr/bin/python3.11 3.11.2 (lacks json, venv)"
    assert problem.next == "sudo apt install python3"
    whole = Tool("/usr/local/bin/python3.10", "3.10.2")
    assert build_of(replace(host, pythons=(minimal, whole))).python == whole.path


def test_a_python_of_the_settings_without_its_library() -> None:
    host = replace(GPU_HOST, pythons=(replace(SYSTEM, lacks=("ssl",)),))
    assert "(lacks ssl)" in only_problem(plan(host, python=SYSTEM.path)).found


@pytest.mark.parametrize("folder", ["/home/ann", "/root/.pyenv", "/run/user/1000"])
def test_a_python_that_units_do_not_see(folder: str) -> None:
    python = Tool(f"{folder}/bin/python3.12", "3.12.1")
    host = replace(GPU_HOST, pythons=(python,))
    assert "systemd's units see nothing" in only_problem(plan(host)).found
    assert "units see nothing" in only_problem(plan(host, python=python.path)).found
    assert build_of(host, scope="user").python == python.path


def test_a_python_of_the_settings_that_the_account_can_not_run() -> None:
    path = "/srv/ann/bin/python3"
    host = replace(GPU_HOST, pythons=(SYSTEM,), extra_there=(path,))
    found = only_problem(plan(host, python=path)).found
    assert found.startswith(f"{path} (the account that builds can't run it), /usr/bin/python3.11")


@pytest.mark.parametrize("place", ["prefix", "state"])
def test_a_folder_behind_a_link_into_a_home(place: str) -> None:
    host = replace(GPU_HOST, real_paths={place: "/home/data/opt/llamafleet"})
    problem = only_problem(plan(host))
    assert problem.check == "folders" and "at /home/data/opt/llamafleet" in problem.found
    assert place_problem(host, Layout.user("/home/ann")) is None
    elsewhere = replace(GPU_HOST, real_paths={place: "/data/opt/llamafleet"})
    assert build_of(elsewhere) == build_of(GPU_HOST)


@pytest.mark.parametrize(
    ("changes", "check", "said"),
    [
        ({"setpriv": False, "unseen": "x"}, "rights", "sudo apt install util-linux"),
        ({"setpriv": False, "package_manager": "apk"}, "rights", "apk add setpriv"),
        ({"setpriv": False, "package_manager": None}, "rights", "install util-linux"),
        ({"unseen": "found no end"}, "snapshot", "found no end"),
    ],
)
def test_what_is_not_known_is_not_planned(changes: dict[str, Any], check: str, said: str) -> None:
    """Nor is anything else said that is missing only because it was not read."""
    host = replace(GPU_HOST, **{"pythons": (), "compilers": (), "package_manager": "apt"} | changes)
    problem = only_problem(plan(host))
    assert problem.check == check and said in str(problem)


def test_an_error_of_three_parts_is_said_in_these() -> None:
    host = HostSnapshot(error="found 'hi; expected x'; expected a header; next: log in")
    assert str(only_problem(plan(host))) == (
        "snapshot: found 'hi; expected x'; expected a header; next: log in"
    )
    host = HostSnapshot(error="it was not reached")
    assert only_problem(plan(host)).found == "it was not reached"
