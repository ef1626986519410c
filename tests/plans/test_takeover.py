"""A host that the first version of this code deployed, or is deploying to just now.

What it left there is read from the recorded files of tests/protocol/data/version-1, in the text
that the snapshot script prints; its builds keep their fingerprint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from llamafleet.facts.host import Build
from llamafleet.facts.reader import parse
from llamafleet.layout import Layout
from llamafleet.plans.make import make_plan
from llamafleet.plans.plan import Plan
from llamafleet.plans.requirements import host_requirements
from llamafleet.plans.supplies import Supplies
from llamafleet.protocol.job import Method
from llamafleet.render import toolkit_config
from llamafleet.settings import Settings
from llamafleet.wheelhouse.manifest import Wheelhouse
from tests.hosts.recorded import load
from tests.plans.hosts import HOUSE
from tests.protocol.test_job import VERSION_1, recorded

KEY = "f498d04545a73273"
LAYOUT = Layout.system()
HOST = load("rtx4090-580-ubuntu24").text
ROOT = LAYOUT.toolkit("13.0")
TOOLKIT = f"toolkit={ROOT}\t{ROOT}\t13.0\t1\t1\t1\t1\t{ROOT}/lib\n"
ACTIVE = f"current={KEY}\nbuilt={KEY}\n"


def job(kind: str, key: str, alive: bool, **files: str) -> str:
    """A job's folder as the script prints it."""
    text = f"job={kind}\t{key}\t{int(alive)}\n"
    for name, content in files.items():
        lines = content.splitlines()
        text += f"@begin {name}\t{kind}\t{key}\t{LAYOUT.job(kind, key)}/{name}.json\n"
        text += "".join(f" {line}\n" for line in lines) + "\n@end\n"
    return text


def file(name: str) -> str:
    return (VERSION_1 / f"{name}.json").read_text()


WHEELS = TOOLKIT + job("toolkit", "13.0", False, stamp=file("wheels-stamp"))


def plan(found: str, **settings: Any) -> Plan:
    assert "complete=1\n" in HOST
    text = HOST.replace("complete=1\n", found + "complete=1\n")
    snapshot = parse(text.split("\n"))
    made = recorded("build-stamp")["libraries"]
    whole = {name: Build(name, runs=True, libraries=made) for name in snapshot.versions}
    return make_plan("gpu-a", Settings(**settings), replace(snapshot, builds=whole), LAYOUT)


def test_what_it_built_is_not_built_again() -> None:
    made = plan(WHEELS + ACTIVE + job("build", KEY, False, stamp=file("build-stamp")))
    assert made.toolkit and not made.toolkit.install and made.toolkit.method == "wheels"
    assert (made.toolkit.config, made.toolkit.job) == (None, None)
    assert made.build and (made.build.fingerprint, made.build.action) == (KEY, "none")
    assert made.build.job is None


def test_a_build_of_its_that_runs_is_attached_to() -> None:
    made = plan(WHEELS + job("build", KEY, True, progress=file("build-progress")))
    assert made.build and (made.build.fingerprint, made.build.action) == (KEY, "attach")
    assert made.build.job and not made.build.job.start


def test_a_build_of_its_that_failed_is_made_again() -> None:
    made = plan(WHEELS + job("build", KEY, False, stamp=file("build-failed-stamp")))
    assert made.build and made.build.action == "build"
    assert made.build.reason == "the last attempt failed in phase compile"


def test_what_differs_from_its_build_is_told() -> None:
    host = WHEELS + ACTIVE + job("build", KEY, False, stamp=file("build-stamp"))
    made = plan(host, cmake_options={"LLAVA_BUILD": "ON"})
    assert made.build and made.build.action == "build"
    assert made.build.reason == "cmake_options -LLAVA_BUILD=OFF +LLAVA_BUILD=ON"


def test_its_toolkit_that_is_being_installed_is_attached_to() -> None:
    progress = {**recorded("build-progress"), "kind": "toolkit", "key": "13.0"}
    made = plan(job("toolkit", "13.0", True, progress=json.dumps(progress)))
    assert made.toolkit and made.toolkit.install and "is being installed" in made.toolkit.reason
    assert made.toolkit.job and not made.toolkit.job.start


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"version": 2, "kind": "build", "key": "k", "ok": true}', "version: found 2"),
        ("", "no JSON"),
        (file("build-stamp")[:700], "no JSON"),
        (file("build-stamp").replace('"ok": true', '"ok": "yes"'), 'ok: found "yes"'),
    ],
)
def test_a_stamp_that_can_not_be_read_is_told_and_the_build_made_again(text: str, why: str) -> None:
    made = plan(WHEELS + ACTIVE + job("build", KEY, False, stamp=text))
    assert made.build and made.build.action == "build"
    assert "the stamp of the last attempt can't be read" in made.build.reason
    assert why in made.build.reason


def test_a_toolkit_whose_stamp_can_not_be_read_is_installed_again() -> None:
    made = plan(TOOLKIT + job("toolkit", "13.0", False, stamp="{"))
    assert made.toolkit and made.toolkit.install and made.toolkit.root == ROOT


# What jobs are told keeps its form: the file of a host is the same, but for what came later.

NEWER = ("proxies", "ca_bundle", "netrc")


def written(config: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    assert [data.pop(name) for name in NEWER] == [{}, None, None]
    return data


def test_a_build_is_told_what_it_was_told() -> None:
    made = plan("")
    assert made.build is not None
    # The recording has but the first lines of them.
    assert made.build.config.requirements == host_requirements()
    told = {**written(made.build.config), "requirements": ""}
    added = [told.pop(name) for name in ("keep_wheel", "wheel", "wheel_file", "cache", "notes")]
    assert added == [False, None, "", None, []]
    # No inputs of the fingerprint: what is built stays built.
    later = {
        "-DGGML_CCACHE=OFF",
        "-DCMAKE_SHARED_LINKER_FLAGS_RELEASE=-Wl,--disable-new-dtags",
    }
    assert later <= set(told["cmake_args"])
    assert not any(one.removeprefix("-D") in str(told["inputs"]) for one in later)
    told["cmake_args"] = [one for one in told["cmake_args"] if one not in later]
    assert told == {**recorded("build-config"), "requirements": ""}


@pytest.mark.parametrize(
    ("method", "host", "house"),
    [
        ("wheels", "rtx4090-580-ubuntu24", HOUSE),
        ("runfile", "rtx4090-580-ubuntu24", None),
        ("apt", "rtx4090-580-ubuntu24", None),
        ("dnf", "l40s-550-rocky8-toolset", None),
    ],
)
def test_a_toolkit_is_told_what_it_was_told(
    method: Method, host: str, house: Wheelhouse | None
) -> None:
    settings = Settings(toolkit_method=method, wheelhouse=house.folder if house else None)
    snapshot = replace(load(host).snapshot, toolkits=())
    supplies = Supplies(wheelhouse=house)
    made = make_plan("gpu-a", settings, snapshot, LAYOUT, supplies=supplies)
    assert made.toolkit is not None, made.problems
    now, then = written(toolkit_config(made.toolkit)), recorded(f"{method}-config")
    assert now.pop("compute_capabilities") == [gpu.compute_capability for gpu in snapshot.gpus][:1]
    for config in (now, then):
        # What wrote the pins, and in which order, is no part of what is installed.
        lines = config.get("requirements", "").splitlines()
        config["requirements"] = sorted(line for line in lines if not line.startswith("#"))
    if house:
        # Then it lay among the account's folders.
        assert then["find_links"] == f"{LAYOUT.state}/wheelhouse"
        then["find_links"] = LAYOUT.wheelhouse
    assert now == then
