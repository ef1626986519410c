"""The unprivileged account and the folders that belong to it."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FactBase, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.layout import USER, Layout
from llamafleet.managed import Folder, unfinished
from llamafleet.plans.account import ACCOUNT, GROUP, AccountPlan, plan_account
from operations.rights import as_account
from operations.run import HostRun, here

# The folder comes with its record: one that was there before is never taken for llamafleet's.
_PREFIX = (
    'umask 022; if test -e "$to"; then exit 0; fi; mkdir -p -- "${to%/*}" && rm -rf -- "$p" && '
    'mkdir -- "$p" && echo "$to" >"$p/made" && mv -T -- "$p" "$to"'
)
# What is recorded and then not made is made by the next run.
_FOLDER = (
    'umask 022; if test -d "$d"; then exit 0; fi; mkdir -p -- "${d%/*}" && '
    'echo "$d" >>"$made" && mkdir -- "$d" && '
    '{ test -z "$owner" || chown -h -- "$owner" "$d"; }'
)
_OWN = (
    'if test -L "$d"; then echo "$d: found a link; expected a folder; next: ls -ld $d" >&2; '
    'exit 1; fi; { test -z "$owner" || chown -h -- "$owner" "$d"; } && chmod "$mode" -- "$d"'
)
_ACCOUNT = (
    f"if getent passwd {USER} >/dev/null; then exit 0; fi; "
    f"group=--user-group; if getent group {USER} >/dev/null; then group='--gid {USER}'; else "
    f'echo {GROUP} >>"$made" || exit 1; fi; '
    f'echo {ACCOUNT} >>"$made" && useradd --system $group --no-create-home '
    f'--shell /usr/sbin/nologin --home-dir "$home" {USER}'
)
_GROUP = (
    f"getent group {USER} >/dev/null || "
    f'{{ echo {GROUP} >>"$made" && groupadd --system {USER}; }} && usermod -aG {USER} {USER}'
)
_MARKER = (
    'set -C; { echo "$id" >"$to"; } 2>/dev/null || test "$(head -c 200 "$to")" = "$id" || '
    '{ echo "$to: found another machine than $id: a home that several hosts share; expected one '
    'for each; next: give each a home of its own" >&2; exit 1; }'
)


@operation()
def account() -> Generator[PyinfraCommand, None, None]:
    """
    Create the account that builds and verifies (scope system) and the folders, or repair them.

    **Example:**

    .. code:: python

        from operations.account import account
        account(name="Create the account and its folders")
    """
    run = here()
    snapshot, layout = run.snapshot(), run.layout()
    wanted = plan_account(run.settings, snapshot, layout)
    if wanted.linger and run.host.state.is_executing:
        _ask_to_linger(run)
    if not wanted.needed:
        run.noop("account and folders are as they should be")
        return
    if wanted.prefix:
        yield make_prefix(layout)
    if wanted.record:
        lines = map(QuoteString, wanted.record)
        yield StringCommand("printf '%s\\n'", *lines, ">>", QuoteString(layout.made))
    yield from _account(wanted, layout)
    yield from _folders(wanted, layout)
    if wanted.below:
        yield StringCommand(*as_account(run), "mkdir -p --", *map(QuoteString, wanted.below))
    if wanted.marker:
        yield script(_MARKER, to=layout.machine, id=wanted.marker)
    if done := _done(wanted):
        run.changed(done)


def make_prefix(layout: Layout) -> StringCommand:
    """Make the folder of the record, with the record in it, unless there is one of that name."""
    return script(_PREFIX, to=layout.prefix, p=unfinished(layout.prefix))


def make_folder(row: Folder, layout: Layout) -> StringCommand:
    """Record a folder and make it, unless there is one of that name."""
    return script(_FOLDER, d=row.path, owner=_owner(row, layout), made=layout.made)


def _account(wanted: AccountPlan, layout: Layout) -> Generator[StringCommand, None, None]:
    if wanted.account:
        yield script(_ACCOUNT, made=layout.made, home=layout.state)
    if wanted.group:
        yield script(_GROUP, made=layout.made)
    for group in wanted.groups:
        yield StringCommand(
            f"if getent group {group} >/dev/null; then usermod -aG {group} {USER}; fi"
        )


def _folders(wanted: AccountPlan, layout: Layout) -> Generator[StringCommand, None, None]:
    for row in wanted.make:
        yield make_folder(row, layout)
    for row in wanted.own:
        mode = f"{row.access(layout).mode:o}"
        yield script(_OWN, d=row.path, owner=_owner(row, layout), mode=mode)


def _owner(row: Folder, layout: Layout) -> str:
    """For chown; "": of whoever deploys."""
    wanted = row.access(layout)
    return f"{wanted.user}:{wanted.group}" if wanted.user else ""


def script(text: str, **values: str) -> StringCommand:
    """A command of these variables."""
    told = (QuoteString(f"{name}={value}") for name, value in values.items())
    return StringCommand("env", *told, "sh -c", QuoteString(text))


def _done(wanted: AccountPlan) -> str:
    """What was done, for the report."""
    if wanted.account:
        return "account"
    if wanted.group or wanted.groups:
        return "account's groups"
    there = wanted.prefix or wanted.make or wanted.own or wanted.below or wanted.marker
    return "folders" if there else ""


class Lingers(FactBase[bool]):
    """Whether the user's own units outlive the session, now that it was asked for.

    No command of the operation: where the host refuses it, as many do, nothing has changed.
    """

    def command(self) -> str:
        return (
            "loginctl --no-ask-password enable-linger >/dev/null 2>&1; "
            'test -e "/var/lib/systemd/linger/$(id -un)" && echo 1 || echo 0'
        )

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return output[-1:] == ["1"]


def _ask_to_linger(run: HostRun) -> None:
    """Say loudly where it is refused: the host works, and its timer ends with the session."""
    if run.host.get_fact(Lingers, _ignore_errors=True, _timeout=20):
        run.changed("lingering enabled")
        return
    user = run.snapshot().user
    run.say(
        f"lingering: found that the host refuses it to user {user}; expected units that outlive "
        "the session, or no verification comes again by itself; "
        f"next: sudo loginctl enable-linger {user}",
        fg="yellow",
    )
