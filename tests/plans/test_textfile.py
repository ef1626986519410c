"""The page for node_exporter: made where it is wanted, removed where it is llamafleet's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.facts.host import HostSnapshot, Owner
from llamafleet.plans.make import make_plan, to_read
from llamafleet.plans.textfile import PagePlan, page_problem, plan_page
from llamafleet.plans.uninstall import plan_uninstall
from llamafleet.settings import Settings
from tests.plans.hosts import LAYOUT, only_problem
from tests.plans.test_account import HOME, at_home, deployed

FOLDER = "/var/lib/prometheus/node-exporter"
PAGE = f"{FOLDER}/llamafleet.prom"
WANTED = Settings(metrics_folder=FOLDER, accelerator="cpu")
A_LINK = Owner("link", "root", "root", 0o777)
READ = Owner("folder", "root", "root", 0o755)
OURS = Owner("file", "root", "root", 0o644)


def host(*made: str, **there: Owner) -> HostSnapshot:
    """With these pages in the record; `there`: what lies at the page's and the folder's place."""
    found = deployed()
    places = {PAGE: there.get("page"), FOLDER: there.get("folder", READ)}
    seen = {path: owner for path, owner in places.items() if owner}
    lines = tuple(f"metrics {path}" for path in made)
    return replace(found, owners=found.owners | seen, made=found.made + lines)


@pytest.mark.parametrize(
    ("settings", "snapshot", "plan"),
    [
        (Settings(), host(), PagePlan()),
        (WANTED, host(), PagePlan(make=PAGE)),
        (Settings(metrics_folder=f"{FOLDER}/"), host(), PagePlan(make=PAGE)),
        (WANTED, host(PAGE), PagePlan(make=PAGE)),
        (WANTED, host(PAGE, page=OURS), PagePlan()),
        (WANTED, host(page=OURS), PagePlan(make=PAGE)),
        (WANTED, host("/old/llamafleet.prom"), PagePlan(PAGE, ("/old/llamafleet.prom",))),
        (Settings(), host(PAGE), PagePlan(remove=(PAGE,))),
    ],
)
def test_what_is_to_be_done(settings: Settings, snapshot: HostSnapshot, plan: PagePlan) -> None:
    assert plan_page(settings, snapshot) == plan
    assert plan.needed is (plan != PagePlan())


@pytest.mark.parametrize(
    ("settings", "snapshot", "found"),
    [
        (Settings(), host(), None),
        (WANTED, host(), None),
        (WANTED, host(PAGE, page=OURS), None),
        (WANTED, replace(deployed()), f"no folder {FOLDER}"),
        (WANTED, host(folder=A_LINK), f"{FOLDER} is no folder but a link"),
        (WANTED, host(page=OURS), f"{PAGE}, a file that llamafleet did not make"),
        (
            WANTED,
            host(PAGE, page=A_LINK),
            f"{PAGE}, a link that llamafleet did not make",
        ),
        (
            Settings(metrics_folder="/srv/../var/lib/llamafleet/results"),
            host(),
            "/var/lib/llamafleet/results, a folder of llamafleet",
        ),
        (Settings(metrics_folder=LAYOUT.prefix), host(), f"{LAYOUT.prefix}, a folder of llama"),
        (Settings(metrics_folder="/tmp/read"), host(), "/tmp/read, of which each unit has its own"),
        (WANTED, host(folder=replace(READ, user="llamafleet")), f"{FOLDER} of the account"),
        (WANTED, host(folder=replace(READ, user="prometheus")), None),
        (WANTED, replace(host(), init="silent"), "no systemd that answers"),
        (WANTED.model_copy(update={"runtime": "container"}), host(), "runtime container"),
    ],
)
def test_where_no_page_can_be(settings: Settings, snapshot: HostSnapshot, found: str) -> None:
    problem = page_problem(settings, snapshot, LAYOUT)
    if found is None:
        assert problem is None
    else:
        assert problem is not None and problem.found.startswith(found)


def test_in_a_home_it_is_one_s_own_folder() -> None:
    wanted = Settings(scope="user", metrics_folder=FOLDER)
    home = at_home()
    theirs = replace(home, owners=home.owners | {FOLDER: READ})
    problem = page_problem(wanted, theirs, HOME)
    assert problem is not None and problem.found == f"{FOLDER} of root"
    own = replace(home, owners=home.owners | {FOLDER: replace(READ, user="joe")})
    assert page_problem(wanted, own, HOME) is None


def test_a_plan_reads_folder_and_page_and_says_it_all() -> None:
    assert {FOLDER, PAGE} <= {*to_read(WANTED)[3]}
    assert to_read(Settings())[3] == to_read(WANTED)[3][:-2]
    notes = make_plan("a", WANTED, host(), LAYOUT).notes
    assert f"write {PAGE} (found none)" in notes
    problem = only_problem(make_plan("a", WANTED, deployed(), LAYOUT))
    assert problem.check == "metrics_folder"


def test_uninstall_removes_it_by_the_record() -> None:
    assert PAGE in plan_uninstall(host(PAGE, page=OURS), LAYOUT).files
    assert PAGE in plan_uninstall(host(PAGE), LAYOUT).files, "not looked at: it is not asked for"
    assert PAGE not in plan_uninstall(host(page=OURS), LAYOUT).files
    theirs = host(PAGE, page=A_LINK)
    assert PAGE not in plan_uninstall(theirs, LAYOUT).files
