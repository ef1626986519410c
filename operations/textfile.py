"""The link by which node_exporter finds the verification's figures: see plans/textfile.py."""

from __future__ import annotations

import posixpath
from collections.abc import Generator

from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.managed import unfinished
from llamafleet.plans.textfile import LINK, plan_link
from llamafleet.protocol.verify import PROM
from operations.account import script
from operations.run import here

# What is recorded and then not made is made by the next run. Nothing that is there is replaced.
_MAKE = (
    'grep -qxF -e "$line" "$made" || echo "$line" >>"$made" || exit 1; ln -sT -- "$target" "$path"'
)
# What stands there by now and is no link is somebody else's.
_REMOVE = (
    'umask 022; if test -L "$path"; then rm -f -- "$path" || exit 1; fi; '
    '{ grep -vxF -e "$line" "$made" || test $? = 1; } >"$partial" && mv -fT -- "$partial" "$made"'
)


@operation()
def textfile() -> Generator[PyinfraCommand, None, None]:
    """
    Link the verification's figures into the folder that node_exporter reads, or remove the link.

    **Example:**

    .. code:: python

        from operations.textfile import textfile
        textfile(name="Show the verification to node_exporter")
    """
    run = here()
    wanted = plan_link(run.settings, run.snapshot())
    if not wanted.needed:
        run.noop("node_exporter finds what it is to find")
        return
    layout = run.layout()
    for path in wanted.remove:
        yield script(
            _REMOVE,
            path=path,
            line=f"{LINK}{path}",
            made=layout.made,
            partial=unfinished(layout.made),
        )
        run.changed(f"{posixpath.basename(path)} removed")
    if wanted.make:
        yield script(
            _MAKE,
            path=wanted.make,
            target=f"{layout.results}/{PROM}",
            line=f"{LINK}{wanted.make}",
            made=layout.made,
        )
        run.changed(f"{posixpath.basename(wanted.make)} linked")
