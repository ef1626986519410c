"""What of a model fits a host's GPUs: asked of the build that is there, as the account."""

from __future__ import annotations

import json
from dataclasses import asdict
from shlex import quote

from pyinfra.api.facts import FactBase

from llamafleet.facts.snapshot import one_line
from llamafleet.layout import AS_ACCOUNT, Layout
from llamafleet.protocol.fit import Use
from llamafleet.protocol.offer import Wish

TIMEOUT_S = 300
"""A model is searched with some tens of counts of 13 ms each; a driver that sleeps takes longer."""
NO_BUILD = "llamafleet: no build"


class FitText(FactBase[str]):
    """The JSON that `fit` of the zipapp prints; NO_BUILD where none is switched to."""

    def command(self, layout: Layout, model: str, wish: Wish, use: Use, reserve: int) -> str:
        """`layout` as of plans.make.to_read: its paths may begin with $HOME."""
        python, zipapp = f"{layout.current}/bin/python", layout.zipapp
        rights = " ".join(AS_ACCOUNT) if layout.scope == "system" else ""
        # Nothing of the caller's surroundings, and of root's rights, goes with it.
        words = [
            f'env -i PATH="$PATH" LC_ALL=C.UTF-8 {rights} "{python}" -I "{zipapp}" fit',
            f'--model {quote(model)} --verify "{layout.verify_config}" --reserve {reserve}',
            f"--wish {quote(json.dumps(asdict(wish)))} --use {quote(json.dumps(asdict(use)))}",
        ]
        return one_line(
            f'cd /; if [ -x "{python}" ] && [ -f "{zipapp}" ]; then {" ".join(words)}; '
            f"else echo {quote(NO_BUILD)}; fi; true"
        )

    def process(self, output: list[str]) -> str:
        return "\n".join(output)
