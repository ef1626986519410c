"""Account and folders: what is missing or differs is repaired, piece by piece, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Owner
from llamafleet.layout import Layout
from llamafleet.managed import folder_rows
from llamafleet.plans.account import (
    ACCOUNT,
    GROUP,
    AccountPlan,
    account_problems,
    plan_account,
    record_of,
)
from llamafleet.plans.make import make_plan
from llamafleet.settings import Settings
from tests.plans.hosts import CPU_HOST, LAYOUT, only_problem

HOME = Layout.user("/home/joe")
SYSTEM, USER = Settings(), Settings(scope="user")
BARE = replace(CPU_HOST, account=False)
ROOTS = ("/opt/llamafleet", "/etc/llamafleet", "/var/lib/llamafleet")


def owners(layout: Layout, **changed: Owner) -> dict[str, Owner]:
    """Of all folders as they should be; `changed`: some, by their names' last parts."""
    found = {}
    for row in folder_rows(layout):
        wanted = row.access(layout)
        owner = Owner("folder", wanted.user or "joe", wanted.group or "joe", wanted.mode)
        found[row.path] = changed.get(row.path.rpartition("/")[2], owner)
    return found


def deployed(**changed: Owner) -> HostSnapshot:
    """A host as this code leaves it."""
    return replace(
        CPU_HOST,
        account=True,
        account_groups=("llamafleet", "video", "render"),
        account_home=LAYOUT.state,
        owners=owners(LAYOUT, **changed),
        made=(*ROOTS, GROUP, ACCOUNT, *(row.path for row in folder_rows(LAYOUT) if row.below)),
    )


def at_home(**changed: Any) -> HostSnapshot:
    """The same in a home."""
    folders = owners(HOME)
    made = tuple(folders)
    host = replace(CPU_HOST, user="joe", home="/home/joe", uid=1000, machine_id="a" * 32)
    host = replace(host, owners=folders, made=made, state_machine="a" * 32, linger=True)
    return replace(host, **changed)


def test_a_bare_host_gets_all_of_it() -> None:
    made = plan_account(SYSTEM, BARE, LAYOUT)
    assert made.prefix and made.account and made.groups == ("video", "render")
    given = [row.path for row in made.make if row.account]
    assert given == [LAYOUT.state, LAYOUT.versions, LAYOUT.toolkits, LAYOUT.servers], (
        "whose parents are root's"
    )
    of_root = [row.path for row in made.make if not row.account]
    assert of_root == [LAYOUT.etc, LAYOUT.configs, LAYOUT.jobs_of_root]
    assert all(path.startswith(f"{LAYOUT.state}/") for path in made.below) and made.below
    assert set(made.record) == set(made.below) and made.reasons == ()
    assert made.marker == "" and not made.linger


def test_one_that_has_all_of_it_gets_nothing() -> None:
    assert plan_account(SYSTEM, deployed(), LAYOUT) == AccountPlan()
    assert plan_account(USER, at_home(), HOME) == AccountPlan()


@pytest.mark.parametrize(
    ("host", "part", "words"),
    [
        (deployed(etc=Owner("folder", "root", "root", 0o755)), {}, ""),
        (
            deployed(llamafleet=Owner("folder", "root", "root", 0o777)),
            {"own": ["/opt/llamafleet", "/etc/llamafleet", "/var/lib/llamafleet"]},
            "repair /opt/llamafleet (mode 0777, not 0755)",
        ),
        (
            deployed(versions=Owner("folder", "root", "root", 0o755)),
            {"own": ["/opt/llamafleet/versions"]},
            "repair /opt/llamafleet/versions (owner root, not llamafleet)",
        ),
        (
            replace(deployed(), account_groups=("llamafleet", "render")),
            {"groups": ("video",)},
            "add the account to video (found it is not in)",
        ),
        (
            replace(deployed(), account_groups=("998", "video", "render")),
            {"group": True},
            "make the account's group (found none)",
        ),
        (replace(deployed(), account=False), {"account": True}, ""),
    ],
)
def test_one_thing_that_differs_is_repaired(
    host: HostSnapshot, part: dict[str, Any], words: str
) -> None:
    made = plan_account(SYSTEM, host, LAYOUT)
    for name, wanted in part.items():
        found = getattr(made, name)
        assert ([row.path for row in found] if name == "own" else found) == wanted
    assert made.needed is bool(part)
    assert words in "\n".join(made.reasons)


def test_a_folder_that_somebody_removed_is_made_again() -> None:
    host = deployed()
    for path in (f"{LAYOUT.state}/results", LAYOUT.toolkits):
        del host.owners[path]
    made = plan_account(SYSTEM, host, LAYOUT)
    assert made.below == (f"{LAYOUT.state}/results",)
    assert [row.path for row in made.make] == [LAYOUT.toolkits]


def test_repairs_are_told_in_the_plan() -> None:
    host = deployed(versions=Owner("folder", "root", "root", 0o755))
    notes = make_plan("a", Settings(accelerator="cpu"), host, LAYOUT).notes
    assert any(note.startswith("repair /opt/llamafleet/versions") for note in notes)


@pytest.mark.parametrize(
    ("name", "owner", "said"),
    [
        ("versions", Owner("link", "root", "root", 0o777), "versions is no folder but a link"),
        ("jobs", Owner("folder", "llamafleet", "llamafleet", 0o755), "jobs belongs to llamafleet"),
        ("toolkits", Owner("folder", "joe", "joe", 0o755), "toolkits belongs to joe"),
        ("toolkits", Owner("file", "llamafleet", "llamafleet", 0o644), "no folder but a file"),
        ("results", Owner("file", "llamafleet", "llamafleet", 0o644), "no folder but a file"),
    ],
)
def test_what_can_t_be_repaired_is_a_problem_by_name(name: str, owner: Owner, said: str) -> None:
    host = deployed(**{name: owner})
    problems = account_problems(SYSTEM, host, LAYOUT)
    assert problems and all(
        said in problem.found and "ls -ld" in problem.next for problem in problems
    )
    problem = make_plan("a", Settings(accelerator="cpu"), host, LAYOUT).problems[0]
    assert problem.check == "folders"


def test_a_link_of_a_user_or_among_the_account_s_own_is_left_alone() -> None:
    """A model store on another disk, say: no rights of others are in play."""
    link = Owner("link", "joe", "joe", 0o777)
    host = at_home(owners=owners(HOME, models=link, state=link, llamafleet=link))
    assert account_problems(USER, host, HOME) == () and not plan_account(USER, host, HOME).needed
    models = deployed(models=Owner("link", "llamafleet", "llamafleet", 0o777))
    assert account_problems(SYSTEM, models, LAYOUT) == ()
    assert not plan_account(SYSTEM, models, LAYOUT).needed


def test_others_need_not_enter_a_user_s_folders() -> None:
    host = at_home(owners=owners(HOME, results=Owner("folder", "joe", "joe", 0o700)))
    closed = replace(host, owners={**host.owners, HOME.prefix: Owner("folder", "joe", "j", 0o700)})
    assert not plan_account(USER, closed, HOME).needed


def test_a_home_of_another_machine_is_refused_by_name() -> None:
    host = at_home(state_machine="b" * 32)
    problem = only_problem(make_plan("a", Settings(scope="user", accelerator="cpu"), host, HOME))
    assert (
        problem.check == "home" and "b" * 32 in problem.found and "several hosts" in problem.found
    )
    assert HOME.machine in problem.next
    assert account_problems(SYSTEM, replace(deployed(), state_machine="b" * 32), LAYOUT) == ()


def test_the_first_to_come_marks_the_home() -> None:
    assert plan_account(USER, at_home(state_machine=None), HOME).marker == "a" * 32
    nameless = at_home(state_machine=None, machine_id="", hostname="gpu-a")
    assert plan_account(USER, nameless, HOME).marker == "host gpu-a"
    again = replace(nameless, state_machine="host gpu-a")
    assert not plan_account(USER, again, HOME).needed
    assert account_problems(USER, replace(again, hostname="gpu-b"), HOME)


@pytest.mark.parametrize(
    ("init", "linger", "asked"),
    [
        ("systemd", False, True),
        ("silent", False, True),
        ("systemd", True, False),
        ("none", False, False),
    ],
)
def test_lingering_is_asked_for_where_a_timer_would_die(
    init: str, linger: bool, asked: bool
) -> None:
    host = at_home(init=init, linger=linger)
    assert plan_account(USER, host, HOME).linger is asked
    assert not plan_account(SYSTEM, replace(deployed(), init=init, linger=linger), LAYOUT).linger


def test_a_deployment_of_before_the_record_is_told_by_its_zipapp() -> None:
    host = replace(deployed(), made=())
    assert record_of(host, LAYOUT) == (), "an administrator's own folders and account"
    host = replace(host, files={LAYOUT.zipapp: "0" * 64})
    assert record_of(host, LAYOUT) == (*ROOTS, ACCOUNT, GROUP)
    made = plan_account(SYSTEM, host, LAYOUT)
    assert made.record == (*ROOTS, ACCOUNT, GROUP), "it is written down"
    theirs = replace(host, account_home="/home/llamafleet")
    assert ACCOUNT not in record_of(theirs, LAYOUT)
