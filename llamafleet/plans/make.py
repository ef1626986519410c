"""The plan of one host: all parts joined, all problems at once."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from llamafleet.facts.host import Compiler, HostSnapshot, Tool
from llamafleet.layout import Layout
from llamafleet.managed import by_path, folders
from llamafleet.plans.account import account_problems, plan_account
from llamafleet.plans.build import NO_WHEELS, plan_build, plan_discard, plan_switch
from llamafleet.plans.compilercache import cache_lines
from llamafleet.plans.driver.acceleration import Acceleration, plan_acceleration
from llamafleet.plans.driver.hold import plan_hold
from llamafleet.plans.driver.reboot import Barred
from llamafleet.plans.files import Sha256, dropin_notes, masked_units, plan_files, units_note
from llamafleet.plans.gpus import chosen
from llamafleet.plans.host import (
    as_typed,
    choose_python,
    disk_needs,
    disk_problems,
    machine_problem,
    place_problem,
    rights_problem,
    state_needs,
    unread_problem,
)
from llamafleet.plans.network import network_note, plan_network
from llamafleet.plans.packages import plan_packages_job
from llamafleet.plans.plan import (
    BuildPlan,
    HoldPlan,
    ModelsPlan,
    PackagesPlan,
    Plan,
    Problem,
    Source,
    ToolkitPlan,
    VerifyPlan,
)
from llamafleet.plans.runtime import plan_container, runtime_problems
from llamafleet.plans.serve import (
    fit_problems,
    plan_serve,
    running,
    serve_lines,
    serve_notes,
    serve_problems,
)
from llamafleet.plans.serve_libraries import plan_libraries
from llamafleet.plans.served_models import model_lines, plan_models
from llamafleet.plans.share import cpu_problem
from llamafleet.plans.supplies import NO_SUPPLIES, Supplies
from llamafleet.plans.textfile import page_path, page_problem, plan_page
from llamafleet.plans.toolkit.architectures import capabilities_of, undetected
from llamafleet.plans.toolkit.choice import choose_toolkit, nothing_to_choose
from llamafleet.plans.toolkit.compiler import (
    choose_compiler,
    instead,
    plan_compiler,
    plan_packages,
)
from llamafleet.plans.toolkit.installation import plan_installation
from llamafleet.plans.toolkit.methods import system
from llamafleet.plans.verify import model_problem, plan_verify
from llamafleet.plans.wheelhouse import in_use, misfits, plan_wheelhouse
from llamafleet.protocol.job import BuildInputs, SharedWheel
from llamafleet.protocol.result import Result
from llamafleet.settings import LLAMA_VERSION, Settings
from llamafleet.tables.releases import release
from llamafleet.tables.toolkits import ToolkitRow
from llamafleet.tables.toolkits import toolkit as toolkit_row

T = TypeVar("T")


def layout_for(settings: Settings, snapshot: HostSnapshot) -> Layout:
    """Where things lie on this host."""
    return Layout.system() if settings.scope == "system" else Layout.user(snapshot.home)


def to_read(
    settings: Settings,
) -> tuple[Layout, tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
    """What the snapshot of a host needs: layout, paths to hash, the settings' own paths, folders,
    ports.

    Only the host knows its home, so the layout of scope user begins with $HOME.
    """
    layout = Layout.system() if settings.scope == "system" else Layout.user("$HOME")
    chosen = (settings.toolkit_root, settings.host_compiler, settings.python, settings.model)
    served = settings.serve.values()
    models = (part for one in served for part in one.source.parts)
    paths = (*chosen, *models)
    own = tuple(dict.fromkeys(path for path in paths if path and path.startswith("/")))
    ports = tuple(sorted({one.port for one in served}))
    page = page_path(settings)
    seen = (posixpath.dirname(page), page) if page else ()
    return layout, tuple(by_path(layout)), own, (*folders(layout), *seen), ports


@dataclass
class _Draft:
    """A plan in the making: problems add up while what does not depend on them is still planned."""

    settings: Settings
    snapshot: HostSnapshot
    layout: Layout
    supplies: Supplies
    wheels: Mapping[str, SharedWheel]
    problems: list[Problem] = field(default_factory=list)

    def take(self, part: T | Problem | None) -> T | None:
        """The part; None where it is a problem, which is kept."""
        if isinstance(part, Problem):
            self.problems.append(part)
            return None
        return part

    def attempt(self, check: str, make: Callable[[], T | Problem], fix: str) -> T | None:
        """As `take`; a ValueError of malformed settings is a problem too."""
        try:
            return self.take(make())
        except ValueError as error:
            self.problems.append(Problem(check, str(error), "values that nvcc knows", fix))
            return None

    def judge(self, barred: Barred | None) -> tuple[HoldPlan | None, Acceleration]:
        """What the host is held by, what it computes with, and what speaks against any plan."""
        settings, snapshot, layout = self.settings, self.snapshot, self.layout
        rights = rights_problem(settings, snapshot)
        for found in (rights, machine_problem(snapshot), place_problem(snapshot, layout)):
            self.take(found)
        hold = None if rights else self.take(plan_hold(settings, snapshot))
        acceleration = _of_chosen(plan_acceleration(settings, snapshot, barred), settings, snapshot)
        self.problems.extend(acceleration.problems)
        self.take(model_problem(settings, snapshot))
        self.take(cpu_problem(settings, snapshot))
        self.problems.extend(serve_problems(settings, snapshot, layout))
        self.problems.extend(runtime_problems(settings, snapshot, acceleration.backend))
        self.problems.extend(masked_units(acceleration.backend, settings, snapshot, layout))
        self.problems.extend(account_problems(settings, snapshot, layout))
        self.take(page_problem(settings, snapshot, layout))
        return hold, acceleration

    def stopped(self, plan: Plan) -> Plan:
        """The plan with the problems and nothing to carry out but the hold."""
        problems = (replace(p, next=as_typed(self.snapshot, p.next)) for p in self.problems)
        return replace(plan, problems=tuple(problems), reboot=None)

    def code(self, acceleration: Acceleration, python: Tool | None) -> _Code:
        """Packages, toolkit and build."""
        packages = self.take(plan_packages(self.snapshot, self.settings))
        if acceleration.backend == "cpu":
            compiler = self._compiler(packages, None)
            return _Code(packages, None, self._build(compiler, None, (), python))
        if acceleration.problems:
            return _Code(packages)
        if acceleration.reboot:
            self._foresee_toolkit()
            return _Code(packages)
        capabilities = self.attempt(
            "compute_capabilities",
            partial(capabilities_of, self.snapshot, self.settings),
            "set compute_capabilities, as ('8.9',)",
        )
        toolkit = self._toolkit(packages, capabilities)
        if toolkit is None or capabilities is None:
            return _Code(packages)
        if toolkit.compiler:
            packages = plan_compiler(toolkit.compiler, toolkit.version)
        compiler = self._compiler(packages, toolkit)
        build = self._build(compiler, toolkit, capabilities, python)
        if compiler and python:
            toolkit = self.take(
                plan_installation(
                    toolkit,
                    self.settings,
                    self.snapshot,
                    self.layout,
                    capabilities=capabilities,
                    cxx=compiler.path,
                    python=python.path,
                    supplies=self.supplies,
                )
            )
        return _Code(packages, toolkit, build)

    def _toolkit(
        self, packages: PackagesPlan | None, capabilities: tuple[str, ...] | None
    ) -> ToolkitPlan | None:
        # Where it is not known which compilers can be installed, one must be there first.
        judged = packages and (not packages.names or system(self.snapshot) is not None)
        if not judged:
            self._foresee_toolkit()
        if not judged or capabilities is None:
            return None
        house = self.supplies.wheelhouse
        return self.take(
            choose_toolkit(self.snapshot, self.settings, capabilities, self.layout, house)
        )

    def _foresee_toolkit(self) -> None:
        """Keep the problem of a host that will get no toolkit, before anything is done to it."""
        house = self.supplies.wheelhouse
        problem = nothing_to_choose(self.snapshot, self.settings, self.layout, house)
        self.problems.extend([problem] if problem else [])

    def _compiler(
        self, packages: PackagesPlan | None, toolkit: ToolkitPlan | None
    ) -> Compiler | None:
        """None: one must be installed first, or none will do."""
        if packages is None or packages.names:
            return None
        return self.take(choose_compiler(self.snapshot, self.settings, _row(toolkit)))

    def _build(
        self,
        compiler: Compiler | None,
        toolkit: ToolkitPlan | None,
        capabilities: tuple[str, ...],
        python: Tool | None,
    ) -> BuildPlan | None:
        if compiler is None or python is None:
            return None
        make = partial(
            plan_build,
            self.settings,
            self.snapshot,
            toolkit=toolkit,
            capabilities=capabilities,
            python=python.path,
            layout=self.layout,
            house=self.supplies.manifest,
            wheels=self.wheels,
        )
        notes = undetected(self.snapshot, self.settings) if toolkit else ()
        fix = "remove CMAKE_CUDA_ARCHITECTURES from cmake_options"
        build = self.attempt("cmake_options", partial(make, compiler=compiler, notes=notes), fix)
        failed = self.snapshot.job("build", build.fingerprint) if build else None
        other = instead(self.snapshot, self.settings, _row(toolkit), compiler, failed)
        if build is None or other is None:
            return build
        told = f"nvcc refused {compiler.path}: built with {other.path}"
        again = make(compiler=other, notes=(*notes, told))
        return replace(again, instead=build.fingerprint, reason=f"{told}; {again.reason}")

    def models(self, python: Tool | None, besides_mib: int) -> ModelsPlan | None:
        """Those that are served. `besides_mib`: what all else needs on the same disk."""
        if python is None:
            return None
        models = self.take(
            plan_models(
                self.settings,
                self.snapshot,
                self.layout,
                python=python.path,
                supplies=self.supplies,
                besides_mib=besides_mib,
            )
        )
        self.problems.extend(fit_problems(self.settings, self.snapshot, models))
        return models


def _row(toolkit: ToolkitPlan | None) -> ToolkitRow | None:
    return toolkit_row(toolkit.version) if toolkit else None


@dataclass(frozen=True)
class _Code:
    """What the machine code is made with; a part is None as in a plan."""

    packages: PackagesPlan | None
    toolkit: ToolkitPlan | None = None
    build: BuildPlan | None = None


def make_plan(
    host: str,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    barred: Barred | None = None,
    *,
    supplies: Supplies = NO_SUPPLIES,
    sha256: Sha256 | None = None,
    other_code: bool = False,
    wheels: Mapping[str, SharedWheel] = NO_WHEELS,
) -> Plan:
    """What to do on one host. With problems the plan has only the hold to carry out.

    `barred`: why this run can't reboot the host; None: it can. `sha256`: of rendered files, to
    compare the host's with; None: only what is missing there is seen. `other_code`: this run has
    replaced the code of the host's jobs. `wheels`: of other hosts, by fingerprint. Raises
    ValueError where the settings name a wheelhouse and `supplies` has none: the plan would be that
    of a host with a network.
    """
    if settings.wheelhouse and supplies.wheelhouse is None:
        raise ValueError(f"the wheelhouse {settings.wheelhouse} of {host} was not read")
    unread = unread_problem(snapshot)
    if unread:
        return _stopped(host, settings, unread)
    draft = _Draft(settings, snapshot, layout, supplies, wheels)
    hold, acceleration = draft.judge(barred)
    told = (*acceleration.notes, *_notes(settings, snapshot, layout))
    notes = tuple(as_typed(snapshot, note) for note in told)
    plan = Plan(host, acceleration.backend, notes=notes, hold=hold, reboot=acceleration.reboot)
    if settings.runtime == "container":
        return _in_container(draft, plan, sha256)
    python = draft.take(choose_python(settings, snapshot, supplies.manifest))
    code = draft.code(acceleration, python)
    return _built(draft, plan, code, python, sha256=sha256, other_code=other_code)


def _built(
    draft: _Draft,
    plan: Plan,
    code: _Code,
    python: Tool | None,
    *,
    sha256: Sha256 | None,
    other_code: bool,
) -> Plan:
    """The plan of a host that builds what it serves, or takes what another one built."""
    settings, snapshot, layout = draft.settings, draft.snapshot, draft.layout
    build, toolkit, verify = code.build, code.toolkit, None
    if build:
        plan = replace(plan, notes=plan.notes + build.config.notes)
        verify = plan_verify(plan.host, settings, snapshot, layout, build, other_code=other_code)
    proven = verify is not None and verify.proven

    # A build that waits for its compiler will come, whatever is there.
    waits = bool(code.packages and code.packages.names)
    building = build.action == "build" if build else snapshot.current is None or waits
    house = draft.supplies.wheelhouse if building or _takes_wheels(toolkit) else None
    if house:
        draft.problems.extend(misfits(snapshot, house, python))
        draft.problems.extend(in_use(snapshot, house))
    needs = disk_needs(plan.backend, toolkit, building, _model(verify, snapshot))
    draft.problems.extend(disk_problems(snapshot, needs))
    models = draft.models(python, state_needs(snapshot, needs))
    packages = None
    if code.packages and python:
        job = plan_packages_job(code.packages, settings, snapshot, layout, python.path)
        packages = draft.take(job)
    if draft.problems or packages is None:
        return draft.stopped(plan)
    plan = replace(
        plan,
        packages=packages,
        wheelhouse=plan_wheelhouse(snapshot, layout, house) if house else None,
        toolkit=toolkit,
        build=build,
        verify=verify,
        switch=plan_switch(snapshot, build, proven, serves=bool(settings.serve)) if build else None,
        discard=plan_discard(snapshot, build, proven) if build else (),
        models=models,
    )
    if build is None:
        return plan
    plan = replace(plan, pauses=running(snapshot, layout) if verify and verify.needed else ())
    plan = _with_files(plan, settings, snapshot, layout, sha256)
    if plan.problems or python is None:
        return plan
    return _with_services(plan, draft, python, sha256)


def _notes(settings: Settings, snapshot: HostSnapshot, layout: Layout) -> Iterator[str]:
    """What is said of a host beside its plan."""
    yield from units_note(settings, snapshot)
    yield from network_note(settings, snapshot)
    yield from serve_notes(settings)
    yield from dropin_notes(snapshot)
    yield from plan_page(settings, snapshot).reasons
    yield from plan_account(settings, snapshot, layout).reasons


def _with_services(plan: Plan, draft: _Draft, python: Tool, sha256: Sha256 | None) -> Plan:
    """The plan with what its services need, which are rendered from the rest of it."""
    settings, snapshot, layout = draft.settings, draft.snapshot, draft.layout
    libraries = plan_libraries(
        settings,
        layout,
        plan_network(settings, snapshot, layout),
        python=python.path,
        version=python.version,
        house=draft.supplies.manifest,
    )
    serve = plan_serve(plan, settings, snapshot, layout, libraries=libraries, sha256=sha256)
    return replace(plan, serve=serve)


def _in_container(draft: _Draft, plan: Plan, sha256: Sha256 | None) -> Plan:
    """The plan of a host that builds nothing: the image holds what it serves."""
    settings, snapshot, layout = draft.settings, draft.snapshot, draft.layout
    models = draft.models(draft.take(choose_python(settings, snapshot, None)), 0)
    if draft.problems or models is None:
        return draft.stopped(plan)
    if plan.reboot:
        return plan
    (model,) = models.paths.values()
    container = plan_container(settings, snapshot, layout, plan.backend, model)
    plan = replace(plan, container=container, models=models)
    plan = _with_files(plan, settings, snapshot, layout, sha256)
    serve = plan_serve(plan, settings, snapshot, layout, libraries=None, sha256=sha256)
    return replace(plan, serve=serve)


def _of_chosen(
    acceleration: Acceleration, settings: Settings, snapshot: HostSnapshot
) -> Acceleration:
    """The same with what the setting `gpus` chooses. A driver that does not work shows too few
    GPUs for its names to be judged."""
    named = settings.gpus is not None and settings.accelerator != "cpu"
    if not named or acceleration.problems or acceleration.reboot:
        return acceleration
    choice = chosen(settings, snapshot)
    if choice.problem:
        return replace(acceleration, problems=(choice.problem,))
    notes = acceleration.notes
    if choice.left_out:
        count = len(choice.gpus)
        out = "; ".join(choice.left_out)
        notes = (*notes, f"uses {count} of {count + len(choice.left_out)} GPUs; left out: {out}")
    return replace(acceleration, notes=notes)


def unplanned(host: str, settings: Settings, error: Exception) -> Plan:
    """The plan of a host that no plan could be made of: nothing is done there."""
    problem = Problem(
        "plan",
        f"{type(error).__name__}: {error}",
        "a host that a plan can be made of",
        f"llamafleet snapshot {host} -o FILE, and report it with that file",
    )
    return _stopped(host, settings, problem)


def _stopped(host: str, settings: Settings, problem: Problem) -> Plan:
    """A plan before it is known what the host has."""
    return Plan(host, "cpu" if settings.accelerator == "cpu" else "cuda", (problem,))


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


def _takes_wheels(toolkit: ToolkitPlan | None) -> bool:
    """A job that runs already has what it needs, and must keep it."""
    if toolkit is None or not toolkit.install or toolkit.method != "wheels":
        return False
    return toolkit.job is None or toolkit.job.start


def _model(verify: VerifyPlan | None, snapshot: HostSnapshot) -> str | None:
    """The model that a verification has yet to write; None: none, or it is not known."""
    model = verify.config.inputs.model if verify and verify.needed else None
    there = snapshot.result.inputs.model if isinstance(snapshot.result, Result) else None
    return None if model == there else model


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
    if plan.wheelhouse:
        verb = "bring" if plan.wheelhouse.bring else "use"
        lines.append(f"wheelhouse: {verb} {plan.wheelhouse.source} ({plan.wheelhouse.reason})")
    if plan.reboot:
        later = "toolkit, build, verify: planned once it has rebooted"
        return [*lines, later, *model_lines(plan.models)]
    if plan.toolkit:
        lines += _toolkit_lines(plan.toolkit)
    if plan.container:
        lines.append(f"container: {plan.container.image}, which verifies itself when it starts")
        lines += [f"  device {device}" for device in plan.container.devices]
    elif plan.build:
        lines += _build_lines(plan.build)
    else:
        later = "build, verify: planned once the packages are there"
        return [*lines, later, *model_lines(plan.models)]
    if plan.files:
        lines += [f"files: {reason}" for reason in plan.files.reasons]
    if plan.verify:
        verb = "needed" if plan.verify.needed else "not needed"
        paused = f"; {', '.join(plan.pauses)} not served meanwhile" if plan.pauses else ""
        lines.append(f"verify: {verb} ({plan.verify.reason}){paused}")
    if plan.switch:
        when = "" if plan.switch.proven else "once that is verified "
        lines.append(f"switch: to {plan.switch.name} {when}({plan.switch.reason})")
    if plan.discard:
        lines.append(f"  then remove {' '.join(plan.discard)}")
    return [
        *lines,
        *model_lines(plan.models),
        *(serve_lines(plan.serve) if plan.serve else ()),
    ]


def _toolkit_lines(toolkit: ToolkitPlan) -> list[str]:
    verb = "install" if toolkit.install else "use"
    return [
        f"toolkit: {verb} CUDA {toolkit.version} at {toolkit.root} ({toolkit.reason})",
        *(_source_lines(toolkit.source) if toolkit.source else ()),
        *(f"  not {version}: {why}" for version, why in toolkit.ruled_out),
    ]


def _build_lines(build: BuildPlan) -> list[str]:
    told = build.config
    verb = "take" if told.wheel else build.action
    lines = [f"build: {verb} {build.fingerprint} ({build.reason})"]
    if told.keep_wheel:
        lines.append(
            "  its wheel is for all hosts of this fingerprint: the first of them builds it"
        )
    if build.clears and not told.wheel:
        lines.append("  the wheel of another host that an earlier run left there is removed")
    if build.action == "build":
        lines += _version_lines(told.inputs)
    if verb == "build":
        lines.append(f"  {told.jobs} jobs, {' '.join(told.cmake_args)}")
        lines += [f"  {line}" for line in cache_lines(told.cache)]
    return lines


def _version_lines(inputs: BuildInputs) -> list[str]:
    """Of a build that is not of the usual archive."""
    known = release(inputs.llama_version)
    usual = inputs.llama_version == LLAMA_VERSION
    if usual and known and known.sha256 == inputs.llama_sha256:
        return []
    line = f"  llama-cpp-python {inputs.llama_version}, sha256 {inputs.llama_sha256}"
    return [line if known else f"{line}: not known here, nor are its options"]


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
