"""The CUDA Toolkit with cuBLAS."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from pyinfra import host
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.plans.plan import toolkit_requirements
from operations import jobs
from operations.build import report_failure
from operations.run import here
from operations.wheelhouse import find_links

MINUTES = 60


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
    folder = layout.job("toolkit", chosen.version)
    running = run.snapshot().job("toolkit", chosen.version)
    if running is None or not running.alive:
        yield from jobs.upload_config(
            run,
            folder,
            {
                "version": 1,
                "kind": "toolkit",
                "key": chosen.version,
                "inputs": {"method": chosen.method},
                "root": chosen.root,
                "python": python,
                "pip": layout.pip,
                "requirements": toolkit_requirements(chosen.version),
                "cxx": plan.build.environment["CUDAHOSTCXX"],
                "index_url": run.settings.index_url,
                "find_links": find_links(run),
            },
        )
        yield jobs.start(run, "toolkit", folder, python)

    def done(stamp: dict[str, Any]) -> bool:
        if not stamp.get("ok"):
            return report_failure(run, "toolkit", stamp)
        run.changed(f"toolkit {chosen.version} from {chosen.method}")
        return True

    yield jobs.watch(run, "toolkit", folder, python, minutes=MINUTES, done=done)
