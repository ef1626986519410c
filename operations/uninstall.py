"""Remove every trace of llamafleet from a host."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.facts.files import FileContents

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import USER, Layout
from llamafleet.plans.driver.hold import release
from llamafleet.plans.lock import lock_problem
from llamafleet.plans.plan import Problem
from llamafleet.plans.uninstall import (
    JOB_S,
    PACKAGE_MANAGER_S,
    Process,
    UninstallPlan,
    plan_uninstall,
    traces,
)
from operations import jobs
from operations.container import remove_containers
from operations.files import systemctl
from operations.lock import decision
from operations.run import HostRun, here

# A process is ended if it is the one that the job told of, started then, and runs this very zipapp.
# With root's rights only one of root, and that one alone: it lets the package manager end. Of
# others the worker is of the same process group. One line, without a "!": see operations/upload.py.
_ALIVE = (
    'alive() { read -r stat 2>/dev/null <"/proc/$pid/stat" || return 1; '
    'set -- ${stat##*) }; test "${20}" = "$ticks" || return 1; '
    'test "$1" = Z && return 1; whom=$pid; test "$of" = root || whom=-$3; '
    'test "$(stat -c %U "/proc/$pid")" = "$of" || return 1; '
    "tr '\\000' '\\n' <\"/proc/$pid/cmdline\" | grep -A1 -xF -e \"$zipapp\" | "
    "grep -qxE -e 'job|verify'; }; "
)
_END = (
    _ALIVE + 'alive || exit 0; kill -TERM "$whom"; left=$seconds; '
    'while test "$left" -gt 0 && alive; do sleep 1; left=$((left - 1)); done; '
    'if alive; then echo "process $pid of a job: found it at work after $seconds s; expected '
    'its end; next: ps -fp $pid, then run this again" >&2; exit 1; fi'
)
END_S = 5
"""For the account's processes to end, by each of two signals."""
# All processes of the account, but for those of a container: its accounts may have the same numbers
# (999 is that of many images). A root folder of its own is that of a container, unless the user
# namespace is one too: in that every account makes itself a root folder. To end them nothing is
# left of root's rights, so that no other account's process can be meant; nor of its terminal, as
# those that are ended could do something with this one before.
_END_ALL = (
    'uid={uid}; test -n "$uid" || exit 0; '
    "users=$(readlink /proc/self/ns/user); root=$(stat -Lc %d:%i /); "
    "left() {{ for its in /proc/[0-9]*; do of=; while read -r key value rest; do "
    'if test "$key $value" = "State: Z"; then break; fi; '
    'if test "$key" = Uid:; then of=$value; break; fi; done 2>/dev/null <"$its/status"; '
    'test "$of" = "$uid" || continue; '
    'test "$(stat -Lc %d:%i "$its/root" 2>/dev/null)" = "$root" || '
    'case $(readlink "$its/ns/user") in "$users") continue ;; esac; '
    'echo "${{its#/proc/}}"; done; }}; '
    "for signal in TERM KILL; do seconds={seconds}; pids=$(left); "
    'while test -n "$pids" && test $seconds -gt 0; do '
    '{rights} sh -c \'kill -s "$0" "$@" 2>/dev/null\' $signal $pids; '
    "sleep 1; seconds=$((seconds - 1)); pids=$(left); done; done; true"
)
_REMOVE = "rm -rf --one-file-system --"


@operation()
def uninstall() -> Generator[PyinfraCommand, None, None]:
    """
    Stop jobs and units, remove units, settings, builds, toolkits, results, models and account.

    Packages of the driver that llamafleet held are released. Distribution packages that it
    installed stay: others may use them by now. Their names are printed. Folders and an account
    that were there before llamafleet stay too. The host is read again at the end, and fails if
    anything is left.

    **Example:**

    .. code:: python

        from operations.uninstall import uninstall
        uninstall(name="Remove llamafleet")
    """
    run = here()
    snapshot, layout = run.snapshot(), run.layout()
    if problem := _in_the_way(run, snapshot, layout):
        yield FunctionCommand(_fail, (run, problem), {})
        return
    wanted = plan_uninstall(snapshot, layout)
    for stays in wanted.stays:
        run.say(f"stays: {stays}")
    if not wanted.found:
        run.noop("no trace of llamafleet is there")
        if run.host.state.is_executing:
            _forget_wheels(run)
        return
    yield from _stop(run, wanted, snapshot)
    yield from remove_containers(run, wanted.containers, wanted.images)
    hold = release(snapshot)
    for command in hold.commands if hold else ():
        yield StringCommand(command)
    _say_packages(run, snapshot, layout)
    yield from _remove(run, wanted, snapshot)
    run.changed("removed")
    yield FunctionCommand(_check, (run,), {})


def _in_the_way(run: HostRun, snapshot: HostSnapshot, layout: Layout) -> Problem | None:
    if snapshot.error:
        return Problem(
            "uninstall",
            f"a host that could not be read ({snapshot.error})",
            "one whose files can be looked at; nothing was removed",
            "see the log above, then run it again",
        )
    held = decision(run)
    if held.state == "held" and snapshot.deploy_lock:
        return lock_problem(held, snapshot.deploy_lock, layout.deploy_lock)
    return None


def _stop(
    run: HostRun, wanted: UninstallPlan, snapshot: HostSnapshot
) -> Generator[StringCommand, None, None]:
    if snapshot.init == "systemd":
        # One by one, so that one that is not there stops no other. What has no file, as a job's
        # unit, can't be disabled.
        yield _each_unit(run, wanted, "disable --now --quiet", "stop")
    for process in wanted.processes:
        yield end(run, process)
    if wanted.account:
        yield end_all(f"$(id -u {USER})", jobs.as_account(run))


def end(run: HostRun, process: Process) -> StringCommand:
    """End a job's process and wait for that, with no more rights than the process has."""
    layout = run.layout()
    of = "root" if process.root else (USER if layout.scope == "system" else run.snapshot().user)
    told = {
        "pid": process.pid,
        "ticks": process.start_ticks,
        "seconds": process.seconds,
        "zipapp": layout.zipapp,
        "of": of,
    }
    return StringCommand(
        *(() if process.root else jobs.as_account(run)),
        "env",
        *(QuoteString(f"{name}={value}") for name, value in told.items()),
        "sh -c",
        QuoteString(_END),
        _timeout=process.seconds + JOB_S,
    )


def end_all(uid: str, rights: Iterable[str]) -> StringCommand:
    """End all processes of an account; `rights`: what runs a command with those of the account."""
    script = _END_ALL.format(uid=uid, rights=" ".join(rights), seconds=END_S)
    # One of them can stop the shell that is to end it, as that has the rights of the account.
    return StringCommand("sh -c", QuoteString(script), _timeout=2 * END_S + JOB_S)


def _say_packages(run: HostRun, snapshot: HostSnapshot, layout: Layout) -> None:
    """From the record, if it is root's own file: root would follow another's link."""
    owner = snapshot.owners.get(layout.installed_packages)
    if owner is not None and (owner.kind != "file" or owner.user != snapshot.user):
        return
    path = layout.installed_packages
    staying = run.host.get_fact(FileContents, path=path, _ignore_errors=True)
    if staying:
        run.say(f"packages that were installed and stay: {' '.join(sorted(set(staying)))}")


def _remove(
    run: HostRun, wanted: UninstallPlan, snapshot: HostSnapshot
) -> Generator[StringCommand, None, None]:
    yield StringCommand("rm -f --", *_wants(run, wanted), *map(QuoteString, wanted.files))
    if snapshot.init == "systemd":
        yield StringCommand(systemctl(run), "daemon-reload")
        yield _each_unit(run, wanted, "reset-failed")
    # rm enters no link, and the account has no process left to change a name meanwhile.
    if wanted.folders:
        yield StringCommand(_REMOVE, *map(QuoteString, wanted.folders))
    if wanted.account:
        yield StringCommand("userdel", USER)
    if wanted.group:
        yield StringCommand(f"if getent group {USER} >/dev/null; then groupdel {USER}; fi")
    # The record goes last: a run that is cut off before knows by it what is left to do.
    yield StringCommand(_REMOVE, *map(QuoteString, wanted.last))


def _each_unit(run: HostRun, wanted: UninstallPlan, *verbs: str) -> StringCommand:
    """A command that asks systemd for each, whatever it says."""
    ctl = systemctl(run)
    done = " ".join(f'{ctl} {verb} "$unit" 2>/dev/null;' for verb in verbs)
    units = map(QuoteString, wanted.units)
    seconds = PACKAGE_MANAGER_S + JOB_S
    return StringCommand("for unit in", *units, f"; do {done} done; true", _timeout=seconds)


def _wants(run: HostRun, wanted: UninstallPlan) -> Iterable[StringCommand]:
    """Where systemd did not answer nothing else has disabled a unit."""
    units = QuoteString(run.layout().units)
    for unit in wanted.units:
        yield StringCommand(units, "/*.wants/", QuoteString(unit), _separator="")


def _fail(state: State, host: Host, run: HostRun, problem: Problem) -> bool:
    run.fail(problem)
    return False


def _check(state: State, host: Host, run: HostRun) -> bool:
    """Read the host again: what was there is believed to be gone when it is seen to be."""
    run.reread()
    snapshot, layout = run.snapshot(), run.layout()
    left = [snapshot.error] if snapshot.error else traces(snapshot, layout)
    if not left:
        _forget_wheels(run)
        return True
    found = f"left on the host: {', '.join(left[:20])}"
    run.fail(Problem("uninstall", found, "no trace", "see the log above, then run it again"))
    return False


def _forget_wheels(run: HostRun) -> None:
    """A host that is out of the fleet gives it no code any more."""
    store = run.sharing.store
    try:
        for key in store.forget(run.name):
            run.say(f"{store.folder / key}: removed, as it was built there")
    except OSError as error:
        run.say(
            f"build_sharing: found that its wheels in {store.folder} can't be removed ({error}); "
            f"expected to write there; next: grep -l {run.name} {store.folder}/*/*.json",
            fg="yellow",
        )
