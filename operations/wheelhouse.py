"""A wheelhouse of the controller, copied to hosts that use no registry."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.layout import Layout
from llamafleet.managed import access, unfinished
from llamafleet.plans.plan import WheelhousePlan
from llamafleet.wheelhouse.manifest import MANIFEST
from operations import upload
from operations.run import here


@operation()
def wheelhouse() -> Generator[PyinfraCommand, None, None]:
    """
    Copy the wheelhouse of the settings to the host, beside the one that is there.

    Each file's sha256 is compared on the host. Before, a copy lay among the account's folders.

    **Example:**

    .. code:: python

        from operations.wheelhouse import wheelhouse
        wheelhouse(name="Bring the wheelhouse")
    """
    run = here()
    wanted = run.plan().wheelhouse
    if wanted is None or not wanted.bring:
        run.noop(wanted.reason if wanted else "nothing is taken from a wheelhouse")
        return
    supply = run.supplies.wheelhouse
    assert supply is not None, "a plan takes from no other one"
    sha256 = {name: file.sha256 for name, file in supply.manifest.files.items()}
    yield from bring(wanted, {**sha256, MANIFEST: supply.sha256}, run.layout())
    # rm enters no link. The account could not remove it: root brought what is in it.
    old = QuoteString(f"{run.layout().state}/wheelhouse")
    yield StringCommand("rm -rf --one-file-system --", old)
    run.changed("wheelhouse")


def bring(
    wanted: WheelhousePlan, sha256: dict[str, str], layout: Layout
) -> Generator[StringCommand, None, None]:
    """Fill a folder beside it, and put that in its place."""
    target, partial = wanted.target, unfinished(wanted.target)
    new, place = QuoteString(partial), QuoteString(target)
    yield StringCommand("rm -rf --", new, "&& mkdir -m 755 --", new)
    for name in wanted.files:
        source = Path(wanted.source, name)
        yield from upload.write(source, f"{partial}/{name}", access(layout), sha256[name])
    yield StringCommand("rm -rf --", place, "&& mv -T --", new, place)
