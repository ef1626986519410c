"""The plan of one host: all parts joined, all problems at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import Layout
from llamafleet.managed import by_path
from llamafleet.plans.build import allowed_unused, plan_build
from llamafleet.plans.driver.acceleration import plan_acceleration
from llamafleet.plans.driver.hold import plan_hold
from llamafleet.plans.driver.reboot import Barred
from llamafleet.plans.files import Sha256, masked_units, plan_files, units_note
from llamafleet.plans.host import (
    choose_python,
    disk_needs,
    disk_problems,
    machine_problem,
    rights_problem,
    unread_problem,
)
from llamafleet.plans.plan import (
    BuildPlan,
    HoldPlan,
    PackagesPlan,
    Plan,
    Problem,
    Source,
    ToolkitPlan,
    VerifyPlan,
)
from llamafleet.plans.requirements import host_requirements, llama_requirement, toolkit_requirements
from llamafleet.plans.toolkit.architectures import capabilities_of
from llamafleet.plans.toolkit.choice import choose_toolkit
from llamafleet.plans.toolkit.compiler import choose_compiler, plan_compiler, plan_packages
from llamafleet.plans.toolkit.methods import system
from llamafleet.plans.verify import plan_verify
from llamafleet.protocol.result import Backend, Result
from llamafleet.settings import Settings
from llamafleet.tables.toolkits import toolkit as toolkit_row

__all__ = [
    "allowed_unused",
    "explain",
    "host_requirements",
    "layout_for",
    "llama_requirement",
    "make_plan",
    "to_read",
    "toolkit_requirements",
]

T = TypeVar("T")


def layout_for(settings: Settings, snapshot: HostSnapshot) -> Layout:
    """Where things lie on this host."""
    return Layout.system() if settings.scope == "system" else Layout.user(snapshot.home)


def to_read(settings: Settings) -> tuple[Layout, tuple[str, ...], tuple[str, ...]]:
    """What the snapshot of a host needs: layout, paths to hash, the settings' own paths.

    Only the host knows its home, so the layout of scope user begins with $HOME.
    """
    layout = Layout.system() if settings.scope == "system" else Layout.user("$HOME")
    chosen = (settings.toolkit_root, settings.host_compiler, settings.python)
    return layout, tuple(by_path(layout)), tuple(path for path in chosen if path)


class _Problems:
    """Collects problems while the parts that don't depend on the missing one are still planned."""

    def __init__(self) -> None:
        self.all: list[Problem] = []

    def take(self, part: T | Problem) -> T | None:
        """The part; None where it is a problem, which is kept."""
        if isinstance(part, Problem):
            self.all.append(part)
            return None
        return part

    def attempt(self, check: str, make: Callable[[], T | Problem], fix: str) -> T | None:
        """As `take`; a ValueError of malformed settings is a problem too."""
        try:
            return self.take(make())
        except ValueError as error:
            self.all.append(Problem(check, str(error), "values that nvcc knows", fix))
            return None


def make_plan(
    host: str,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    barred: Barred | None = None,
    *,
    sha256: Sha256 | None = None,
) -> Plan:
    """What to do on one host. With problems the plan has only the hold to carry out.

    `barred`: why this run can't reboot the host; None: it can. `sha256`: of rendered files, to
    compare the host's with; None: only what is missing there is seen.
    """
    unread = unread_problem(snapshot)
    if unread:
        return Plan(host, "cpu" if settings.accelerator == "cpu" else "cuda", (unread,))
    problems = _Problems()
    rights = rights_problem(settings, snapshot)
    for found in (rights, machine_problem(snapshot)):
        problems.take(found)
    hold = None if rights else problems.take(plan_hold(settings, snapshot))
    acceleration = plan_acceleration(settings, snapshot, barred)
    problems.all += acceleration.problems
    backend = acceleration.backend
    problems.all += masked_units(backend, settings, snapshot, layout)
    notes = (*acceleration.notes, *units_note(settings, snapshot))
    python = problems.take(choose_python(settings, snapshot))
    packages = problems.take(plan_packages(snapshot, settings))

    toolkit: ToolkitPlan | None = None
    build: BuildPlan | None = None
    capabilities: tuple[str, ...] | None = ()
    cuda = backend == "cuda"
    if cuda and not acceleration.problems and not acceleration.reboot:
        capabilities = problems.attempt(
            "compute_capabilities",
            partial(capabilities_of, snapshot, settings),
            "set compute_capabilities, as ('8.9',)",
        )
        # Where it is not known which compilers can be installed, one must be there first.
        judged = packages is not None and (not packages.commands or system(snapshot) is not None)
        if judged and capabilities is not None:
            toolkit = problems.take(choose_toolkit(snapshot, settings, capabilities, layout))
        if toolkit and toolkit.compiler:
            packages = plan_compiler(snapshot, toolkit.compiler, toolkit.version)
    compilers = packages is not None and not packages.commands
    if compilers and capabilities is not None and (toolkit is not None or not cuda):
        row = toolkit_row(toolkit.version) if toolkit else None
        compiler = problems.take(choose_compiler(snapshot, settings, row))
        if compiler and python:
            make = partial(
                plan_build,
                settings,
                snapshot,
                compiler=compiler,
                toolkit=toolkit,
                capabilities=capabilities,
                python=python.path,
            )
            build = problems.attempt(
                "cmake_options", make, "remove CMAKE_CUDA_ARCHITECTURES from cmake_options"
            )
    verify = plan_verify(host, settings, snapshot, layout, build) if build else None
    problems.all += disk_problems(snapshot, _disk(backend, toolkit, build, verify, snapshot))

    if problems.all or packages is None:
        return Plan(host, backend, tuple(problems.all), notes, hold)
    plan = Plan(
        *(host, backend, (), notes, hold, acceleration.reboot),
        *(packages, toolkit, build, verify),
    )
    return _with_files(plan, settings, snapshot, layout, sha256) if build else plan


def _with_files(
    plan: Plan,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    sha256: Sha256 | None,
) -> Plan:
    """The plan with what its files and units need, which are rendered from the rest of it."""
    try:
        files = plan_files("settings", plan, settings, snapshot, layout, sha256=sha256)
    except ValueError as error:
        expected, fix = "values that a shell and systemd read alike", "change cmake_options"
        problem = Problem("environment", str(error), expected, fix)
        return Plan(plan.host, plan.backend, (problem,), plan.notes, plan.hold)
    return replace(plan, files=files)


def _disk(
    backend: Backend,
    toolkit: ToolkitPlan | None,
    build: BuildPlan | None,
    verify: VerifyPlan | None,
    snapshot: HostSnapshot,
) -> dict[str, int]:
    """Room for what will be written; where that isn't known, for a first build."""
    model = verify.config.inputs.model if verify and verify.needed else None
    if isinstance(snapshot.result, Result) and snapshot.result.inputs.model == model:
        model = None  # The last verification has written it.
    building = build.action == "build" if build else snapshot.current is None
    return disk_needs(backend, toolkit, building, model)


def explain(plan: Plan) -> list[str]:
    """What will be done and why, a line for each part."""
    lines = [f"backend: {plan.backend}"]
    lines += [f"note: {note}" for note in plan.notes]
    if plan.hold:
        lines.append(_hold_line(plan.hold))
    if plan.problems:
        return [*lines, *(f"PROBLEM {problem}" for problem in plan.problems)]
    if plan.reboot:
        lines.append(f"reboot: for the updated driver ({plan.reboot.reason})")
    lines.append(_packages_line(plan.packages))
    if plan.reboot:
        return [*lines, "toolkit, build, verify: planned once it has rebooted"]
    if plan.toolkit:
        verb = "install" if plan.toolkit.install else "use"
        lines.append(
            f"toolkit: {verb} CUDA {plan.toolkit.version} at {plan.toolkit.root} "
            f"({plan.toolkit.reason})"
        )
        if plan.toolkit.source:
            lines += _source_lines(plan.toolkit.source)
        lines += [f"  not {version}: {why}" for version, why in plan.toolkit.ruled_out]
    if plan.build is None:
        return [*lines, "build, verify: planned once the packages are there"]
    lines.append(f"build: {plan.build.action} {plan.build.fingerprint} ({plan.build.reason})")
    if plan.build.action == "build":
        lines.append(f"  {plan.build.jobs} jobs, {' '.join(plan.build.cmake_args)}")
    if plan.files:
        lines += [f"files: {reason}" for reason in plan.files.reasons]
    if plan.verify:
        verb = "needed" if plan.verify.needed else "not needed"
        lines.append(f"verify: {verb} ({plan.verify.reason})")
    return lines


def _source_lines(source: Source) -> list[str]:
    lines = []
    if source.repository:
        lines.append(f"  repository {source.repository.url} (key {source.repository.fingerprint})")
    elif source.packages:
        lines.append("  from the repositories that the host has")
    if source.packages:
        lines.append(f"  packages {' '.join(source.packages)}")
    if source.url:
        lines.append(f"  runfile {source.url} (sha256 {source.sha256})")
    return lines


def _hold_line(hold: HoldPlan) -> str:
    release = f"release {' '.join(hold.release)}" if hold.release else "nothing to do"
    return f"hold: {' '.join(hold.hold) or release} ({hold.reason})"


def _packages_line(packages: PackagesPlan) -> str:
    what = f"install {' '.join(packages.names)}" if packages.names else "none"
    return f"packages: {what} ({packages.reason})"
