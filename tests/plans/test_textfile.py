"""The link for node_exporter: made where it is wanted, removed where it is llamafleet's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.facts.host import HostSnapshot, Owner
from llamafleet.plans.make import make_plan, to_read
from llamafleet.plans.textfile import LinkPlan, link_problem, plan_link
from llamafleet.plans.uninstall import plan_uninstall
from llamafleet.settings import Settings
from tests.plans.hosts import LAYOUT, only_problem
from tests.plans.test_account import HOME, at_home, deployed

FOLDER = "/var/lib/prometheus/node-exporter"
LINK = f"{FOLDER}/llamafleet.prom"
WANTED = Settings(metrics_folder=FOLDER, accelerator="cpu")
READ = Owner("folder", "root", "root", 0o755)
OURS = Owner("link", "root", "root", 0o777)


def host(*made: str, **there: Owner) -> HostSnapshot:
    """With these links in the record; `there`: what lies at the link's and the folder's place."""
    found = deployed()
    places = {LINK: there.get("link"), FOLDER: there.get("folder", READ)}
    seen = {path: owner for path, owner in places.items() if owner}
    lines = tuple(f"link {path}" for path in made)
    return replace(found, owners=found.owners | seen, made=found.made + lines)


@pytest.mark.parametrize(
    ("settings", "snapshot", "plan"),
    [
        (Settings(), host(), LinkPlan()),
        (WANTED, host(), LinkPlan(make=LINK)),
        (Settings(metrics_folder=f"{FOLDER}/"), host(), LinkPlan(make=LINK)),
        (WANTED, host(LINK), LinkPlan(make=LINK)),
        (WANTED, host(LINK, link=OURS), LinkPlan()),
        (WANTED, host("/old/llamafleet.prom"), LinkPlan(LINK, ("/old/llamafleet.prom",))),
        (Settings(), host(LINK), LinkPlan(remove=(LINK,))),
    ],
)
def test_what_is_to_be_done(settings: Settings, snapshot: HostSnapshot, plan: LinkPlan) -> None:
    assert plan_link(settings, snapshot) == plan
    assert plan.needed is (plan != LinkPlan())


@pytest.mark.parametrize(
    ("settings", "snapshot", "found"),
    [
        (Settings(), host(), None),
        (WANTED, host(), None),
        (WANTED, host(LINK, link=OURS), None),
        (WANTED, replace(deployed()), f"no folder {FOLDER}"),
        (WANTED, host(folder=OURS), f"{FOLDER} is no folder but a link"),
        (WANTED, host(link=OURS), f"{LINK}, a link that llamafleet did not make"),
        (
            WANTED,
            host(LINK, link=Owner("file", "root", "root", 0o644)),
            f"{LINK}, a file that llamafleet did not make",
        ),
        (
            Settings(metrics_folder="/srv/../var/lib/llamafleet/results"),
            host(),
            "/var/lib/llamafleet/results, a folder of llamafleet",
        ),
        (Settings(metrics_folder=LAYOUT.prefix), host(), f"{LAYOUT.prefix}, a folder of llama"),
    ],
)
def test_where_no_link_can_be(settings: Settings, snapshot: HostSnapshot, found: str) -> None:
    problem = link_problem(settings, snapshot, LAYOUT)
    if found is None:
        assert problem is None
    else:
        assert problem is not None and problem.found.startswith(found)


def test_in_a_home_it_is_one_s_own_folder() -> None:
    wanted = Settings(scope="user", metrics_folder=FOLDER)
    home = at_home()
    theirs = replace(home, owners=home.owners | {FOLDER: READ})
    problem = link_problem(wanted, theirs, HOME)
    assert problem is not None and problem.found == f"{FOLDER} of root"
    own = replace(home, owners=home.owners | {FOLDER: replace(READ, user="joe")})
    assert link_problem(wanted, own, HOME) is None


def test_a_plan_reads_folder_and_link_and_says_it_all() -> None:
    assert {FOLDER, LINK} <= {*to_read(WANTED)[3]}
    assert to_read(Settings())[3] == to_read(WANTED)[3][:-2]
    notes = make_plan("a", WANTED, host(), LAYOUT).notes
    assert f"link {LINK} (found none)" in notes
    problem = only_problem(make_plan("a", WANTED, deployed(), LAYOUT))
    assert problem.check == "metrics_folder"


def test_uninstall_removes_it_by_the_record() -> None:
    assert LINK in plan_uninstall(host(LINK, link=OURS), LAYOUT).files
    assert LINK in plan_uninstall(host(LINK), LAYOUT).files, "not looked at: it is not asked for"
    assert LINK not in plan_uninstall(host(link=OURS), LAYOUT).files
    theirs = host(LINK, link=Owner("file", "root", "root", 0o644))
    assert LINK not in plan_uninstall(theirs, LAYOUT).files
