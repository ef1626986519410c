"""From a snapshot that somebody attached to a recorded host: python -m tests.hosts.record FILE.

Names are taken out, the text becomes NAME.snapshot, NAME.yaml says what its plan is now, and
golden/NAME.txt is that plan in words. Both are to be reviewed: is the advice right for that host?
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from llamafleet.facts.reader import parse
from llamafleet.facts.scrub import scrub
from tests.hosts import recorded
from tests.hosts.test_hosts import found


def record(
    file: Path, name: str, what: str, source: str, folder: Path = recorded.FOLDER
) -> recorded.RecordedHost:
    """Write the three files. Raises SnapshotError, and FileExistsError where the name is taken."""
    scrubbed = scrub(file.read_text("utf-8", errors="replace").replace("\r\n", "\n"))
    parse(scrubbed.text.split("\n"))
    described: dict[str, Any] = {"what": what, "source": source, "base": f"{name}.snapshot"}
    with (folder / f"{name}.yaml").open("x", encoding="utf-8") as opened:
        (folder / f"{name}.snapshot").write_text(scrubbed.text, "utf-8")
        host = recorded.RecordedHost(name, scrubbed.text)
        described["expect"] = {key: value for key, value in found(host).items() if value}
        yaml.safe_dump(described, opened, sort_keys=False, allow_unicode=True, width=98)
    (folder / "golden").mkdir(exist_ok=True)
    (folder / "golden" / f"{name}.txt").write_text(host.explanation, "utf-8")
    return host


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m tests.hosts.record", description=__doc__)
    asked.add_argument("file", type=Path, metavar="FILE", help="what `llamafleet snapshot` printed")
    asked.add_argument("--name", required=True, help="as rtx4090-580-ubuntu24")
    asked.add_argument("--what", required=True, help="the host in a line")
    asked.add_argument("--source", required=True, help="where it was attached")
    given = asked.parse_args()
    host = record(given.file, given.name, given.what, given.source)
    sys.stdout.write(host.explanation)
    sys.stdout.write(
        f"review tests/hosts/{given.name}.yaml, .snapshot and golden/{given.name}.txt, then: "
        "pytest tests/hosts\n"
    )


if __name__ == "__main__":
    main()
