"""The page in which node_exporter finds the verification's figures: see plans/textfile.py."""

from __future__ import annotations

import posixpath
from collections.abc import Generator

from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.managed import unfinished
from llamafleet.plans.textfile import plan_page
from llamafleet.protocol.verify import RECORDED
from operations.account import script
from operations.run import here

# What is recorded and then not made is made by the next run. Nothing that is there is replaced.
_MAKE = (
    'if ! grep -qxF -e "$line" "$made"; then '
    'if test -e "$path" || test -L "$path"; then echo "metrics: found $path, which llamafleet did '
    'not make; expected nothing of that name; next: ls -l $path, and move it away" >&2; exit 1; '
    'fi; printf "%s\\n" "$line" >>"$made" || exit 1; fi; '
    'exec "$python" -I "$zipapp" metrics --config "$config" --record "$made"'
)
# What stands there by now and is no file is somebody else's.
_REMOVE = (
    'umask 022; if test -f "$path" && ! test -L "$path"; then rm -f -- "$path" || exit 1; fi; '
    '{ grep -vxF -e "$line" "$made" || test $? = 1; } >"$partial" && mv -fT -- "$partial" "$made"'
)


@operation()
def textfile() -> Generator[PyinfraCommand, None, None]:
    """
    Write the verdict where node_exporter reads it, or remove it there.

    From then on a unit does it at each change: it must be there before.

    **Example:**

    .. code:: python

        from operations.textfile import textfile
        textfile(name="Show the verdict to node_exporter")
    """
    run = here()
    wanted = plan_page(run.settings, run.snapshot())
    if not wanted.needed:
        run.noop("node_exporter finds what it is to find")
        return
    layout, plan = run.layout(), run.plan()
    for path in wanted.remove:
        yield script(
            _REMOVE,
            path=path,
            line=f"{RECORDED}{path}",
            made=layout.made,
            partial=unfinished(layout.made),
        )
        run.changed(f"{posixpath.basename(path)} removed")
    if wanted.make and plan.build:
        yield script(
            _MAKE,
            path=wanted.make,
            line=f"{RECORDED}{wanted.make}",
            made=layout.made,
            python=plan.build.python,
            zipapp=layout.zipapp,
            config=layout.verify_config,
        )
        run.changed(f"{posixpath.basename(wanted.make)} written")
