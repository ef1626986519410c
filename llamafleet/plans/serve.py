"""What the services of a host need: which are started, restarted, left or removed, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from llamafleet.facts.host import HostSnapshot, Listener
from llamafleet.layout import Layout, quadlet, serve_unit
from llamafleet.managed import (
    Managed,
    all_rows,
    container_row,
    former_rows,
    profile_rows,
    rows,
)
from llamafleet.plans.build import served_before
from llamafleet.plans.files import ABSENT, Sha256, plan_rows
from llamafleet.plans.gpus import choose, chosen
from llamafleet.plans.plan import (
    FilesPlan,
    LibrariesPlan,
    ModelsPlan,
    Plan,
    Problem,
    Served,
    ServePlan,
    account_job,
)
from llamafleet.plans.runtime import plan_former
from llamafleet.plans.verify import gguf_problem
from llamafleet.protocol import fit
from llamafleet.protocol.job import LibrariesConfig
from llamafleet.protocol.serve import NAME, Limits, Placement, ServeConfig
from llamafleet.protocol.shape import Shape
from llamafleet.serving import Profile, same_place
from llamafleet.settings import Settings

CREDENTIALS = 247
"""The first systemd that hands a unit credentials: systemd.exec(5), LoadCredential=."""
STEPS = 254
"""The first systemd with RestartSteps=: systemd.service(5)."""
UNIT = re.escape(serve_unit("*")).replace(re.escape("*"), f"({NAME})")
"""A regular expression of the units of all profiles."""
LIBRARIES_MINUTES = 20
"""How long a run waits: 40 MB over a slow line."""
QUADLET = re.escape(quadlet("*")).replace(re.escape("*"), f"({NAME})")
"""The same of podman's files of them."""
WAITS = "auto-restart"
"""Of a unit's state: its process has ended, and systemd starts it again later."""


def profiles_there(snapshot: HostSnapshot, layout: Layout) -> tuple[str, ...]:
    """Profiles of which the host has anything."""
    file = re.compile(rf"{re.escape(layout.etc)}/(?:serve|former)-({NAME})\.(json|key|container)")
    unit = re.compile(rf"(?:{re.escape(layout.units)}/)?{UNIT}")
    container = re.compile(QUADLET)
    told = (*snapshot.files, *snapshot.owners, *snapshot.units)
    kinds = (file, unit, container)
    found = (kind.fullmatch(name) for name in told for kind in kinds)
    return tuple(sorted({match[1] for match in found if match} | {*snapshot.services}))


def serve_problems(settings: Settings, snapshot: HostSnapshot, layout: Layout) -> Iterator[Problem]:
    """Why the profiles can't be served there, as far as it is seen before anything is done."""
    if not settings.serve:
        return
    if snapshot.init != "systemd":
        yield Problem(
            "serve",
            found="no systemd that answers" if snapshot.init == "silent" else "no systemd",
            expected="one: it starts a service at boot and again where it fails",
            next="set serve = {}, or take a host with systemd",
        )
        return
    for name, profile in settings.serve.items():
        key = f"serve.{name}"
        source = profile.source
        for part in source.parts if source.kind == "path" else ():
            if problem := gguf_problem(part, f"{key}.model", settings, snapshot):
                yield problem
        if profile.api_key_file and 0 < snapshot.systemd < CREDENTIALS:
            yield Problem(
                f"{key}.api_key_file",
                found=f"systemd {snapshot.systemd}, which hands no unit a secret",
                expected=f"systemd {CREDENTIALS} or newer",
                next=f"set {key}.address to 127.0.0.1 without a key, or update the host",
            )
        yield from _gpu_problems(key, profile, settings, snapshot)
        yield from _port_problems(key, profile, snapshot, layout)


def _gpu_problems(
    key: str, profile: Profile, settings: Settings, snapshot: HostSnapshot
) -> Iterator[Problem]:
    """Of a host that shows its GPUs; what keeps it from that is a problem of its own."""
    if profile.gpus is None or not snapshot.gpus:
        return
    wanted, proven = choose(profile.gpus, snapshot), chosen(settings, snapshot)
    if wanted.problem:
        yield replace(
            wanted.problem,
            check=f"{key}.gpus",
            next=f"nvidia-smi -L; then change the setting {key}.gpus",
        )
    left_out = {gpu.uuid for gpu in wanted.gpus} - {gpu.uuid for gpu in proven.gpus}
    if left_out and not proven.problem:
        yield Problem(
            f"{key}.gpus",
            found=f"{', '.join(sorted(left_out))}, which the setting gpus leaves out",
            expected="GPUs that are verified",
            next=f"change the setting gpus, or {key}.gpus",
        )


def _port_problems(
    key: str, profile: Profile, snapshot: HostSnapshot, layout: Layout
) -> Iterator[Problem]:
    for one in snapshot.listening:
        # Of a process that may not be seen, what is served now is the likelier one.
        unseen = one.pid is None and bool(running(snapshot, layout))
        ours = unseen or re.fullmatch(UNIT, one.unit)
        if one.port == profile.port and same_place(one.address, profile.address) and not ours:
            yield Problem(
                f"{key}.port",
                found=f"{one.address}:{one.port} in use by {_process(one)}",
                expected="a port that is free",
                next=f"{f'ps -fp {one.pid}; ' if one.pid else ''}end it, or set another {key}.port",
            )


def _process(one: Listener) -> str:
    """Who listens, as far as it may be seen."""
    if one.pid is None:
        return f"a process of user {one.uid}"
    return f"process {one.pid} ({one.command}{f' of {one.unit}' if one.unit else ''})"


def plan_serve(
    plan: Plan,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    libraries: LibrariesConfig | None,
    sha256: Sha256 | None = None,
) -> ServePlan | None:
    """`plan`: the rest of it, of which files are rendered. `libraries`: None: the services come in
    a container. None: nothing is to be done or said."""
    gone = tuple(name for name in profiles_there(snapshot, layout) if name not in settings.serve)
    used = {libraries.key} if settings.serve and libraries else set()
    outdated = tuple(sorted({*snapshot.servers} - used))
    there = {**snapshot.files, **snapshot.owners}
    left = any(row.path(layout) in there for row in rows(layout, "serve"))
    doubt = snapshot.previous is not None
    if not (settings.serve or gone or outdated or left or doubt):
        return None
    made = ServePlan(
        _services(plan, settings, snapshot, layout, libraries=libraries.root if libraries else "/"),
        libraries=_libraries(libraries, snapshot, layout) if settings.serve and libraries else None,
        outdated=outdated,
        gone=gone,
        back=served_before(snapshot, plan.build.name) if settings.serve and plan.build else "",
        doubt=doubt,
    )
    wanted, others = _rows(plan, settings, snapshot, layout, gone)
    files = plan_rows(wanted, others, replace(plan, serve=made), snapshot, layout, sha256=sha256)
    judged = (_judged(one, plan, files, snapshot, layout, rows=wanted) for one in made.services)
    made = replace(made, files=files, services=tuple(judged))
    return _with_former(made, plan, wanted, snapshot, layout, sha256=sha256)


def _with_former(
    made: ServePlan,
    plan: Plan,
    rows: Sequence[Managed],
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    sha256: Sha256 | None,
) -> ServePlan:
    """With the container that is gone back to where the planned one does not answer."""
    if plan.container is None:
        return made
    (service,) = made.services
    planned = {
        one.path(layout): sha256(one, replace(plan, serve=made))
        for one in rows
        if sha256 and one.profile and not one.private
    }
    row = container_row(service.config.profile)
    former = plan_former(row, snapshot, layout, made.files, planned)
    doubt = made.doubt or former.kept
    return replace(made, former=former, back=former.image, doubt=doubt)


def _rows(
    plan: Plan,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    gone: Sequence[str],
) -> tuple[list[Managed], list[Managed]]:
    """What is wanted, and what is not."""
    keyless = {name for name, profile in settings.serve.items() if profile.api_key_file is None}
    there = (*snapshot.files, *snapshot.owners)
    contained = plan.container is not None
    ours = [row for name in settings.serve for row in _of_profile(name, contained)]
    others = [row for row in ours if row.private and row.profile in keyless]
    wanted = [row for row in ours if row not in others]
    others += [row for name in gone for row in all_rows(name)]
    for name in settings.serve:
        # Both make the unit of that name: the one that is not there is not to stop it.
        other = (row for row in _of_profile(name, not contained) if row.unit)
        kept = () if contained else former_rows(name)
        others += [row for row in (*other, *kept) if row.path(layout) in there]
    others = [row for row in others if layout.scope in row.scopes]
    (wanted if settings.serve else others).extend(rows(layout, "serve"))
    return wanted, others


def _services(
    plan: Plan, settings: Settings, snapshot: HostSnapshot, layout: Layout, *, libraries: str
) -> tuple[Served, ...]:
    paths = plan.models.paths if plan.models else {}
    return tuple(
        Served(
            _config(
                name,
                profile,
                snapshot,
                layout,
                host=plan.host,
                libraries=libraries,
                model=paths[name],
                placement=_placement(name, profile, settings, snapshot, plan.models),
            ),
            layout.serve_config(name),
            profile.public,
            container=plan.container.name if plan.container else "",
            load_minutes=Served.load_minutes + (plan.container.minutes if plan.container else 0),
            backs_off=snapshot.systemd >= STEPS,
        )
        for name, profile in settings.serve.items()
    )


def _placement(
    name: str,
    profile: Profile,
    settings: Settings,
    snapshot: HostSnapshot,
    models: ModelsPlan | None,
) -> Placement:
    """As it is wanted; where it is to be fitted and the model is there, as it fits."""
    fitted = _fitted(name, profile, settings, snapshot, models)
    return fitted if isinstance(fitted, Placement) else profile.placement


def _fitted(
    name: str,
    profile: Profile,
    settings: Settings,
    snapshot: HostSnapshot,
    models: ModelsPlan | None,
) -> Placement | fit.Shortage | None:
    """None: nothing is to be fitted, or it is not known yet what the model takes."""
    shape = _shape(name, models) if profile.fitted else None
    room = _room(profile, settings, snapshot)
    if shape is None or not room:
        return None
    taken = _taken(name, settings, snapshot, models)
    left = tuple(
        replace(gpu, free_mib=max(gpu.free_mib - taken.get(uuid, 0), 0))
        for uuid, gpu in room.items()
    )
    return fit.placed(shape, profile.placement, fit.Room(left, profile.reserve_mib, _use(profile)))


def _use(profile: Profile) -> fit.Use:
    return fit.Use(flash_attention=profile.flash_attention)


def _shape(name: str, models: ModelsPlan | None) -> Shape | None:
    """Of a profile's model, once it is there."""
    products = (one.product for one in models.models if name in one.profiles) if models else ()
    product = next(iter(products), None)
    return product.shape if product else None


def _room(profile: Profile, settings: Settings, snapshot: HostSnapshot) -> dict[str, fit.Gpu]:
    """The whole memory of a profile's GPUs: what is free just now is without what is served."""
    if settings.accelerator == "cpu":
        return {}
    asked = choose(profile.gpus, snapshot) if profile.gpus else chosen(settings, snapshot)
    return {gpu.uuid: fit.Gpu(fit.usable(gpu.vram_mib), gpu.name) for gpu in asked.gpus}


def _taken(
    name: str, settings: Settings, snapshot: HostSnapshot, models: ModelsPlan | None
) -> dict[str, int]:
    """MiB of each GPU that other profiles have: those whose layers are stated, and those that are
    fitted before this one."""
    taken: dict[str, int] = {}
    names = list(settings.serve)
    for other, profile in settings.serve.items():
        later = profile.fitted and names.index(other) > names.index(name)
        shape, room = _shape(other, models), _room(profile, settings, snapshot)
        if other == name or later or shape is None or shape.unknown or not room:
            continue
        placement = _placement(other, profile, settings, snapshot, models)
        there = fit.Room(tuple(room.values()), 0, _use(profile))
        for uuid, need in zip(room, fit.needs(shape, placement, there), strict=True):
            taken[uuid] = taken.get(uuid, 0) + need.total_mib
    return taken


def fit_problems(
    settings: Settings, snapshot: HostSnapshot, models: ModelsPlan | None
) -> Iterator[Problem]:
    """Models that are to be fitted and have no room."""
    for name, profile in settings.serve.items():
        short = _fitted(name, profile, settings, snapshot, models)
        if isinstance(short, fit.Shortage):
            yield Problem(f"serve.{name}", short.found, short.expected, short.next)


def _of_profile(profile: str, container: bool) -> tuple[Managed, ...]:
    """Of a profile that is served."""
    rows = profile_rows(profile)
    if not container:
        return rows
    return (*(row for row in rows if not row.unit), container_row(profile))


def _libraries(config: LibrariesConfig, snapshot: HostSnapshot, layout: Layout) -> LibrariesPlan:
    if snapshot.servers.get(config.key):
        return LibrariesPlan(config, "all there")
    running = snapshot.job(config.kind, config.key)
    job = account_job(
        config.kind,
        config.key,
        layout,
        python=config.python,
        minutes=LIBRARIES_MINUTES,
        start=running is None or not running.alive,
    )
    why = "not whole" if config.key in snapshot.servers else "not there"
    return LibrariesPlan(config, why, job)


def _config(
    name: str,
    profile: Profile,
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    host: str,
    libraries: str,
    model: str,
    placement: Placement,
) -> ServeConfig:
    gpus = choose(profile.gpus, snapshot).gpus if profile.gpus is not None else ()
    return ServeConfig(
        version=1,
        profile=name,
        host=host,
        verify=layout.verify_config,
        folder=layout.serve_state(name),
        libraries=libraries,
        model=model,
        alias=profile.alias or name,
        placement=placement,
        address=profile.address,
        port=profile.port,
        key=profile.api_key_file is not None,
        gpus=tuple(gpu.uuid for gpu in gpus),
        flash_attention=profile.flash_attention,
        mmap=profile.value("mmap"),
        mlock=profile.value("mlock"),
        reserve_mib=profile.reserve_mib,
        on_oom=profile.on_oom,
        limits=Limits(**profile.bounds()),
    )


def _judged(
    service: Served,
    plan: Plan,
    files: FilesPlan,
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    rows: Sequence[Managed],
) -> Served:
    """What is to be done with its unit, and why."""
    unit = snapshot.units.get(service.unit, ABSENT)
    name = service.config.profile
    status = snapshot.services.get(name)
    runs = unit.active == "active" or (unit.active == "activating" and unit.sub != WAITS)
    if not runs:
        told = f"{unit.active}, {status.state}: {status.reason}" if status and status.reason else ""
        return replace(service, action="start", reason=f"found {told or unit.active}")
    if plan.switch:
        return replace(service, action="restart", reason=f"current becomes {plan.switch.name}")
    ours = [row.path(layout) for row in rows if row.profile == name]
    if written := [path for path in ours if path in files.write]:
        return replace(service, action="restart", reason=f"changed: {_names(written)}")
    # A run that was cut off has written it, and restarted nothing.
    newer = [
        path
        for path in (*ours, *(() if plan.container else (layout.zipapp, layout.current)))
        if unit.started is not None and snapshot.changed.get(path, 0) > unit.started
    ]
    if newer:
        return replace(service, action="restart", reason=f"newer than it: {_names(newer)}")
    ready = unit.active == "active" and status is not None and status.state == "ready"
    said = f"{status.state}{f': {status.reason}' if status.reason else ''}" if status else unit.sub
    return replace(service, reason=said, ready=ready)


def _names(paths: Sequence[str]) -> str:
    return ", ".join(path.rpartition("/")[2] for path in paths)


def running(snapshot: HostSnapshot, layout: Layout) -> tuple[str, ...]:
    """Profiles that are served just now: a verification interrupts them."""
    there = profiles_there(snapshot, layout)
    return tuple(
        name for name in there if snapshot.units.get(serve_unit(name), ABSENT).active == "active"
    )


def serve_notes(settings: Settings) -> tuple[str, ...]:
    """That nothing verifies by itself where that would interrupt what is served."""
    if settings.runtime == "container":
        return ("no timer verifies: the container does, where it starts on another driver or GPUs",)
    if settings.schedule == settings.verify_schedule:
        return ()
    return (
        "no timer verifies: what is served holds the GPUs; a deploy verifies where something "
        "changed, and the driver check after a driver update; verify_pauses_serving = True has "
        f"the timer ({settings.verify_schedule}) stop the services meanwhile",
    )


def serve_lines(serve: ServePlan) -> list[str]:
    """For the plan as text."""
    lines = []
    if serve.libraries:
        verb = "install" if serve.libraries.job else "use"
        lines.append(f"server: {verb} its packages ({serve.libraries.reason})")
    lines += [f"files: {reason}" for reason in serve.files.reasons]
    for one in serve.services:
        told = one.config
        lines.append(
            f"serve: {one.action} {told.profile} ({one.reason}): {told.model} as {told.alias} on "
            f"{told.address} port {told.port}"
        )
    if serve.back:
        what = "the image" if serve.former else "current"
        since = f"no run has seen {what} serve: asked again; " if serve.doubt else ""
        lines.append(f"serve: {since}back to {serve.back} where one does not answer")
    return lines + [f"serve: remove {name} (not wanted)" for name in serve.gone]
