"""The CUDA Toolkit with cuBLAS."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.protocol.job import Stamp
from llamafleet.render import toolkit_config
from operations import jobs
from operations.build import report_failure
from operations.run import here


@operation()
def toolkit() -> Generator[PyinfraCommand, None, None]:
    """
    Install the toolkit of the plan where none that fits is there.

    **Example:**

    .. code:: python

        from operations.toolkit import toolkit
        toolkit(name="Provide a CUDA Toolkit with cuBLAS")
    """
    run = here()
    plan = run.plan()
    wanted = plan.toolkit
    config = toolkit_config(wanted) if wanted else None
    if wanted is None or wanted.job is None or config is None:
        run.noop(wanted.reason if wanted else "no toolkit is needed")
        return

    def done(stamp: Stamp) -> bool:
        if not stamp.ok:
            return report_failure(run, "toolkit", stamp)
        run.changed(f"toolkit {wanted.version} from {wanted.method}")
        return True

    yield from jobs.carry_out(run, wanted.job, config, done)
