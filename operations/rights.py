"""With whose rights a command runs on a host."""

from __future__ import annotations

from llamafleet.layout import AS_ACCOUNT, Layout
from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.job import PATH
from operations.run import HostRun


def rights_of(run: HostRun, job: JobPlan) -> tuple[str, ...]:
    """What stands before a command that is to have the rights of the job, and no more."""
    return clean_environment(run.layout()) if job.root else as_account(run)


def as_account(run: HostRun) -> tuple[str, ...]:
    """What stands before a command that reads, writes or runs what the account can write.

    In scope system root's rights, groups, environment and terminal are left behind. In scope user
    whoever deploys owns all of it.
    """
    layout = run.layout()
    if layout.scope == "user":
        return ()
    return ("setsid -w", *AS_ACCOUNT, *clean_environment(layout, home=layout.state))


def clean_environment(layout: Layout, home: str = "/root") -> tuple[str, ...]:
    """Of commands in scope system: nothing of the caller's own is left."""
    if layout.scope == "user":
        return ()
    return ("env -i", f"PATH={PATH}", f"HOME={home}", "LC_ALL=C.UTF-8")
