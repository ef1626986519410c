"""The verdict where Prometheus' node_exporter reads it, written anew from latest.json.

node_exporter, often root, opens whatever a name in its folder leads to: a pipe keeps it waiting and
with it every figure of the machine, a series of another program's name makes it answer none, and a
line of any file that it can't read as figures stands in its log. So nothing there is the account's
own, nor a link to it: what the account wrote is read as data, and the page is made here.

`metrics --config FILE --record FILE`: exit 0 where each page that the record names is written, 1
where one can't be, 2 for a bad configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llamafleet.onhost.verify import metrics
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import read_json, write_whole
from llamafleet.protocol.result import Result
from llamafleet.protocol.verify import LATEST, RECORDED, ConfigError, VerifyConfig, load

LONGEST = 2**20
"""Bytes of a page: what any account can make llamafleet say must not weigh on node_exporter. 16
GPUs take 36 kB (measured)."""
TRIES = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Write each page once; the exit status is in the module's docstring."""
    parser = argparse.ArgumentParser(prog="metrics", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--record", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        config = load(options.config)
        pages = recorded(options.record)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"metrics: found that {options.record} can't be read ({error}); expected the record of "
            "what llamafleet made; next: deploy again",
            file=sys.stderr,
        )
        return 1
    return max((_show(config, page) for page in pages), default=0)


def recorded(record: Path) -> list[Path]:
    """The pages that are llamafleet's own. Raises OSError."""
    lines = record.read_text(encoding="utf-8", errors="replace").splitlines()
    return [Path(line.removeprefix(RECORDED)) for line in lines if line.startswith(RECORDED)]


def _show(config: VerifyConfig, page: Path) -> int:
    """Write one page; again where the verdict changed meanwhile, as nothing else would tell."""
    for _ in range(TRIES):
        told = read_json(config.latest)
        try:
            if page.parent.is_symlink():
                raise NotADirectoryError(f"{page.parent} is a link")
            write_whole(page, _page(config, told), durable=False, public=True)
        except OSError as error:
            print(
                f"metrics: found that {page} can't be written ({error}); expected the folder that "
                f"node_exporter reads; next: ls -ld {page.parent} {page}",
                file=sys.stderr,
            )
            return 1
        if read_json(config.latest) == told:
            break
    return 0


def _page(config: VerifyConfig, told: dict[str, object] | None) -> bytes:
    """NOT VERIFIED where there is no verdict, or what stands there is none."""
    made = b""
    if told is not None:
        try:
            # Of the settings of today: they may have changed since it was verified.
            result = replace(decode(Result, told), allow_busy=config.allow_busy)
            made = metrics.page_of(config, result)
        except DecodeError as error:
            print(f"metrics: {LATEST} is no verdict ({error})", file=sys.stderr)
    return made if 0 < len(made) <= LONGEST else metrics.page_of(config, None)
