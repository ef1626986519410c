"""The CUDA Toolkit with cuBLAS."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.protocol.job import Stamp
from llamafleet.render import toolkit_config
from operations import jobs
from operations.build import report_failure
from operations.run import here
from operations.wheelhouse import find_links

MINUTES = 120


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
    if plan.toolkit is None or plan.build is None or not plan.toolkit.install:
        host.noop(plan.toolkit.reason if plan.toolkit else "no toolkit is needed")
        return
    layout, chosen, python = run.layout(), plan.toolkit, plan.build.python
    # Only a package manager needs root.
    root = bool(chosen.source and chosen.source.packages)
    folder = (layout.root_job if root else layout.job)("toolkit", chosen.job)
    running = run.snapshot().job("toolkit", chosen.job)
    if running is None or not running.alive:
        config = toolkit_config(
            chosen,
            plan.build,
            run.settings,
            layout,
            machine=run.snapshot().arch,
            find_links=find_links(run),
        )
        yield from jobs.upload_config(run, folder, config, root=root)
        yield jobs.start(run, "toolkit", folder, python, root=root)

    def done(stamp: Stamp) -> bool:
        if not stamp.ok:
            return report_failure(run, "toolkit", stamp)
        run.changed(f"toolkit {chosen.version} from {chosen.method}")
        return True

    yield jobs.watch(run, "toolkit", folder, python, minutes=MINUTES, done=done)
