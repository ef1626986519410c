"""Command line of the zipapp: `python llamafleet-host.pyz CMD ...`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from llamafleet.onhost import build, detach, discard, driver_check, fit, job, pack, place, textfile
from llamafleet.onhost.serve import check, gate, libraries
from llamafleet.onhost.toolkit import compiler
from llamafleet.onhost.toolkit import install as toolkit
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import (
    BuildConfig,
    CompilerConfig,
    LibrariesConfig,
    ModelConfig,
    status,
    toolkit_config,
)

BUILD = job.Worker("build", partial(decode, BuildConfig), build.work, build.done)
TOOLKIT = job.Worker("toolkit", toolkit_config, toolkit.work, toolkit.done)
PACKAGES = job.Worker("packages", partial(decode, CompilerConfig), compiler.work, compiler.done)
MODEL = job.Worker("model", partial(decode, ModelConfig), place.work, place.done)
LIBRARIES = job.Worker(
    "libraries", partial(decode, LibrariesConfig), libraries.work, libraries.done
)
RUNS: dict[str, Callable[[Path, Path], int]] = {
    BUILD.kind: partial(job.run, BUILD),
    TOOLKIT.kind: partial(job.run, TOOLKIT),
    PACKAGES.kind: partial(job.run, PACKAGES),
    MODEL.kind: partial(job.run, MODEL),
    LIBRARIES.kind: partial(job.run, LIBRARIES),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    command, rest = (args[0], args[1:]) if args else ("", [])
    if command == "start":
        return detach.main(rest)
    if command == "driver-check":
        return driver_check.main(rest)
    if command == "metrics":
        return textfile.main(rest)
    if command == "discard":
        return discard.main(rest)
    if command == "pack":
        return pack.main(rest)
    if command == "serve-gate":
        return gate.main(rest)
    if command == "serve-check":
        return check.main(rest)
    # These import llama_cpp, or NVML's binding, from a build's venv.
    if command == "container":
        from llamafleet.onhost import container

        return container.main(rest)
    if command == "verify":
        from llamafleet.onhost.verify import run as verify

        return verify.main(rest)
    if command in ("fit", fit.COUNT):
        return fit.main(rest) if command == "fit" else fit.count_main(rest)
    if command == "synth":
        from llamafleet.onhost.verify import synth

        return synth.main(rest)
    if command == "serve":
        from llamafleet.onhost.serve import run as serve

        return serve.main(rest)
    return _dispatch(args)


def _dispatch(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="llamafleet-host.pyz", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("job", help="run a job in the foreground")
    run.add_argument("--kind", choices=sorted(RUNS), required=True)
    run.add_argument("--config", type=Path, required=True, help="what it is told, as JSON")
    run.add_argument("--dir", type=Path, required=True, help="the job's folder; it makes it")
    ask = commands.add_parser("status", help="state of a job as one line of JSON")
    ask.add_argument("--dir", type=Path, required=True)
    commands.add_parser("start", help="run a command detached; see start --help")
    commands.add_parser("discard", help="remove builds; see discard --help")
    commands.add_parser("pack", help="make the wheel of a build; see pack --help")
    commands.add_parser("driver-check", help="see driver-check --help")
    commands.add_parser("metrics", help="show the verdict to node_exporter; see metrics --help")
    commands.add_parser("serve-gate", help="may a service start now; see serve-gate --help")
    commands.add_parser("serve-check", help="ask a service for a token; see serve-check --help")
    commands.add_parser("container", help="what starts in a container; see container --help")
    commands.add_parser("verify", help="verify a build and benchmark it; see verify --help")
    commands.add_parser("serve", help="serve a model over HTTP; see serve --help")
    commands.add_parser("fit", help="what of a model fits the GPUs; see fit --help")
    commands.add_parser("synth", help="write a synthetic model; see synth --help")
    options = parser.parse_args(args)
    folder: Path = options.dir.absolute()
    if options.command == "status":
        print(json.dumps(asdict(status(folder))))
        return 0
    return RUNS[options.kind](options.config.absolute(), folder)


if __name__ == "__main__":
    sys.exit(main())
