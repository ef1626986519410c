"""`python -m tests.faults build|deploy [--count N] [--seed N]`: a table; status 1 after a loss."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.faults import loop


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", choices=("build", "deploy"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    say = partial(print, flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        if options.what == "build":
            tally = loop.loop(Path(folder), options.count, options.seed, say)
        else:
            from tests.faults import deploys

            tally = deploys.loop(Path(folder), options.count, options.seed, say)
    print(f"seed {options.seed}, {time.monotonic() - begun:.0f} s\n{tally.table()}")
    print("\n".join(tally.lost))
    return 1 if tally.lost else 0


if __name__ == "__main__":
    sys.exit(main())
