"""Distribution packages that a source build needs."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.protocol.job import Stamp
from operations import jobs
from operations.build import report_failure
from operations.preflight import judge_again
from operations.run import here


@operation()
def packages() -> Generator[PyinfraCommand, None, None]:
    """
    Install what the plan misses, a C++ compiler above all, and complete the plan by it.

    The package manager runs in a job of its own on the host: it outlives this connection.

    **Example:**

    .. code:: python

        from operations.packages import packages
        packages(name="Install what the build needs")
    """
    run = here()
    wanted = run.plan().packages
    if wanted.job is None or wanted.config is None:
        run.noop(wanted.reason)
        return

    def done(stamp: Stamp) -> bool:
        if not stamp.ok:
            return report_failure(run, "packages", stamp)
        run.changed(f"packages {' '.join(wanted.names)}")
        return True

    yield from jobs.carry_out(run, wanted.job, wanted.config, done)
    yield FunctionCommand(judge_again, (run,), {})
