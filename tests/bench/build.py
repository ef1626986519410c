"""`python -m tests.bench.build [options] WHAT...`: a cold build beside the recipe, one table.

WHAT: recipe (what the guide says: pip alone), cmake (ours in CMake's own order), sorted (the same
with build.ninja sorted), units (the units before all else, in CMake's order), ours (both). What is
built is planned for this machine by the settings given with --set, as
`--set 'compute_capabilities=["8.9"]' --set wheelhouse=FOLDER`, or told by --told FILE: the
configuration of a build job.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from llamafleet.onhost import build, buildlog, ninja
from llamafleet.onhost.job import Job
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import BuildConfig
from tests.bench.frame import Row, keep_to, measured, table
from tests.bench.planned import layout_below, planned, settings_of

RECIPE = {
    "cuda": "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={codes}",
    "cpu": "",
}
"""The guide's CMAKE_ARGS, but CMAKE_CUDA_COMPILER_FORCED: the same code is compiled without it, and
with it nothing where NCCL's header lies in /usr/include."""
SORT = """\
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from llamafleet.onhost import ninja
costs = ninja.costs_from(json.loads(Path(sys.argv[2]).read_text()))
Path("build.ninja").write_text(ninja.ordered(Path("build.ninja").read_text(), costs.of)[0])
"""
ROOT = Path(build.__file__).resolve().parents[2]


def recipe(config: BuildConfig, folder: Path, jobs: int) -> Row:
    """The guide's command in a new environment, where that of the plan is for its own choices."""
    venv, tree = folder / "venv", folder / "cmake"
    python = str(venv / "bin" / "python")
    subprocess.run([config.python, "-m", "venv", "--without-pip", str(venv)], check=True)
    codes = ";".join(one.replace(".", "") for one in config.inputs.compute_capabilities)
    names = ("CC", "CXX", "CUDACXX", "CUDAHOSTCXX", "PATH", "LD_LIBRARY_PATH")
    told = {name: config.environment[name] for name in names if name in config.environment}
    env = os.environ | told | {"CMAKE_ARGS": RECIPE[config.inputs.backend].format(codes=codes)}
    env |= {"CMAKE_BUILD_PARALLEL_LEVEL": str(jobs), "PATH": f"{venv}/bin:{env['PATH']}"}
    pip = [python, "-I", config.pip, "install", "--no-cache-dir"]
    if config.find_links:
        # Without a network: its tools are there, and no build environment of pip's own.
        pip += ["--no-index", "--find-links", config.find_links, "--no-build-isolation"]
        listed = folder / "tools.txt"
        listed.write_text(config.requirements)
        subprocess.run([*pip, "-q", "-r", str(listed)], env=env, check=True)
    one = f"llama-cpp-python=={config.inputs.llama_version}"
    pip += ["--verbose", "--no-binary", "llama-cpp-python", "-C", f"build-dir={tree}", one]
    with (folder / "log").open("w") as log:
        subprocess.run(pip, env=env, check=True, stdout=log, stderr=log)
    told_by = buildlog.BuildLog()
    for line in (folder / "log").read_text(errors="replace").splitlines():
        told_by.feed(line)
    made = (tree / ".ninja_log").read_text()
    packing = ninja.packing(made, jobs)
    return Row("", packing=packing, wheel_bytes=told_by.wheel_bytes, said=f"{told_by.steps} steps")


def ours(config: BuildConfig, folder: Path) -> Row:
    """The build job's work, without the process around it."""
    folder.joinpath("build").mkdir()
    job = Job("build", folder / "build" / config.key, config.key)
    job.folder.mkdir()
    job.begin_log()
    job.phase("start")
    product = build.work(job, replace(config, prefix=str(folder / "versions" / config.key)))
    said, size = product.order, product.wheel_bytes
    return Row("", packing=product.packing, wheel_bytes=size, said=said, phases=job.phases)


def _as_written(folder: Path, own: Path, tree: Path, costs: ninja.Costs) -> Path:
    raise ninja.Unordered("asked for")


def _sorted_alone(folder: Path, own: Path, tree: Path, costs: ninja.Costs) -> Path:
    """A wrapper that sorts build.ninja and does nothing else."""
    folder.mkdir()
    table, program, wrapper = folder / "costs.json", folder / "sort.py", folder / "ninja"
    table.write_text(json.dumps({"units": dict(costs.units), "families": list(costs.families)}))
    program.write_text(SORT)
    argv = shlex.join([sys.executable, "-I", str(program), str(ROOT), str(table)])
    there = f'[ "$(pwd -P)" = {shlex.quote(str(tree.resolve()))} ] && [ "$1" = -v ]'
    wrapper.write_text(
        f'#!/bin/sh\n{there} && {argv} && echo "{ninja.SAYS}sorted"\nexec {own} "$@"\n'
    )
    wrapper.chmod(0o755)
    return wrapper


def _all_the_same(ninja_log: str) -> ninja.Costs:
    return ninja.Costs({}, [])


CHANGED: dict[str, tuple[str, Callable[..., object]]] = {
    "cmake": ("wrap", _as_written),
    "sorted": ("wrap", _sorted_alone),
    "units": ("learned", _all_the_same),
}
"""What is put in the place of what, by WHAT."""


def one(what: str, config: BuildConfig, root: Path, cores: int, out: Path | None) -> Row:
    """Measure one build in a folder of its own, which is gone afterwards."""
    folder = root / what
    folder.mkdir()
    try:
        if what == "recipe":
            return measured(what, lambda: recipe(config, folder, cores))
        if what not in CHANGED:
            return measured(what, lambda: ours(config, folder))
        name, other = CHANGED[what]
        with patch.object(ninja, name, other):
            return measured(what, lambda: ours(config, folder))
    finally:
        if out:
            logs = (".ninja_log", "build.log", "log")
            for log in [path for name in logs for path in folder.rglob(name)]:
                shutil.copy(log, out / f"{log.name.lstrip('.')}.{what}.{cores}")
        shutil.rmtree(folder, ignore_errors=True)


def shipped(costs: Path | None) -> ninja.Costs:
    """The table, or what was written from it."""
    if costs:
        return ninja.costs_from(json.loads(costs.read_text()))
    from llamafleet.tables import unit_costs

    return ninja.costs_from(unit_costs.rows())


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="+", choices=["recipe", *CHANGED, "ours"])
    parser.add_argument("--told", type=Path, help="a build job's configuration")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--costs", type=Path, help="the table as JSON, where YAML can't be read")
    parser.add_argument("--cores", type=int, default=0, help="of those that are there")
    parser.add_argument("--out", type=Path, help="folder for ninja's logs")
    args = parser.parse_args()
    cores = keep_to(args.cores)
    known, rows = shipped(args.costs), []
    with (
        tempfile.TemporaryDirectory(prefix="llamafleet-bench-") as root,
        patch.object(ninja, "shipped", lambda: known),
    ):
        if args.told:
            config = decode(BuildConfig, json.loads(args.told.read_text()))
        else:
            layout = layout_below(Path(root) / "planned")
            config = planned(layout, settings_of(args.set)).config
        for what in args.what:
            told = replace(config, jobs=cores)
            rows.append(one(what, told, Path(root), cores, args.out))
            print(table(rows[-1:], cores), flush=True)
    print(table(rows, cores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
