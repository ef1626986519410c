"""The CUDA Toolkit to build with: one that is there, or one from wheels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llamafleet.facts.host import HostSnapshot, Toolkit
from llamafleet.layout import Layout
from llamafleet.plans.compatibility import Blockers, Case, blockers, newest_cuda
from llamafleet.plans.model import Problem, ToolkitPlan
from llamafleet.plans.no_toolkit import no_cuda, no_toolkit
from llamafleet.settings import Settings
from llamafleet.tables import (
    UNVERIFIED,
    WheelToolkit,
    parse_version,
    toolkits,
    wheel_toolkits,
)


def choose_toolkit(
    snapshot: HostSnapshot, settings: Settings, capabilities: Sequence[str], layout: Layout
) -> ToolkitPlan | Problem:
    """The newest fitting toolkit that is there; else the newest from wheels; else why not.

    Raises ValueError on a malformed compute capability.
    """
    newest = newest_cuda(snapshot.driver)
    if newest is None:
        return no_cuda(snapshot.driver)
    cuda, source = newest
    against = {r.version: blockers(r, snapshot, settings, cuda, capabilities) for r in toolkits()}
    wheels = _wheels(snapshot, settings)
    # Our own are judged by their job, unless the settings name one of them.
    own = {layout.toolkit(w.cuda) for w in wheel_toolkits()} - {_root(settings)}

    unfit: list[tuple[str, str]] = []
    there: list[Toolkit] = []
    for tk in sorted(snapshot.toolkits, key=lambda t: t.root):
        if tk.root in own:
            continue
        why = _unfit(tk, settings, against)
        if why:
            unfit.append((tk.version or "?", f"{tk.root}: {why}"))
        else:
            there.append(tk)
    present = max(there, key=lambda t: parse_version(t.version), default=None)
    fitting = [w for w in wheels if not against[w.cuda]]
    # One that is there is kept though a newer one fits: a new driver alone means no new build.
    usable = next((w for w in fitting if _installed(snapshot, w, layout)), None)
    if usable is None and present is None:
        usable = next(iter(fitting), None)

    said = f"driver runs CUDA up to {cuda} ({source})"
    if usable and (present is None or parse_version(usable.cuda) >= parse_version(present.version)):
        plan = _from_wheels(snapshot, usable, layout, said)
    elif present:
        plan = ToolkitPlan(
            version=present.version,
            root=present.root,
            libdir=present.libdir,
            method="present",
            install=False,
            reason=f"newest complete toolkit on the host that fits; {said}",
        )
    else:
        return no_toolkit(
            Case(snapshot, settings, cuda, tuple(capabilities), against, tuple(unfit))
        )
    return _with_ruled_out(plan, against, unfit)


def _root(settings: Settings) -> str:
    return (settings.toolkit_root or "").rstrip("/")


def _unfit(tk: Toolkit, settings: Settings, against: dict[str, Blockers]) -> str:
    """Why a toolkit on the host can't be used; "": it can."""
    if settings.toolkit_root and _root(settings) not in (tk.root, *tk.names):
        return f"toolkit_root = {settings.toolkit_root!r}"
    if settings.toolkit_method not in ("auto", "present"):
        return f"toolkit_method = {settings.toolkit_method!r}"
    if tk.missing:
        return f"incomplete, lacks {', '.join(tk.missing)}"
    if tk.version not in against:
        return f"CUDA {tk.version} is not among the known versions"
    return "; ".join(against[tk.version].values())


def _wheels(snapshot: HostSnapshot, settings: Settings) -> tuple[WheelToolkit, ...]:
    """Toolkits that may be installed from wheels on this machine."""
    if settings.toolkit_root or settings.toolkit_method not in ("auto", "wheels"):
        return ()
    return tuple(w for w in wheel_toolkits() if w.machine == snapshot.arch)


def _installed(snapshot: HostSnapshot, wheel: WheelToolkit, layout: Layout) -> bool:
    job = snapshot.job("toolkit", wheel.cuda)
    root = layout.toolkit(wheel.cuda)
    complete = any(t.root == root and not t.missing for t in snapshot.toolkits)
    return complete and job is not None and job.ok and not job.alive


def _from_wheels(
    snapshot: HostSnapshot, wheel: WheelToolkit, layout: Layout, said: str
) -> ToolkitPlan:
    root = layout.toolkit(wheel.cuda)
    installed = _installed(snapshot, wheel, layout)
    job = snapshot.job("toolkit", wheel.cuda)
    if installed:
        what = "installed from wheels"
    elif job and job.alive:
        what = "is being installed from wheels"
    else:
        what = "no fitting toolkit is on the host: install from wheels"
    doubt = f"; {wheel.source}" if wheel.source.startswith(UNVERIFIED) else ""
    return ToolkitPlan(
        version=wheel.cuda,
        root=root,
        # Not read from the host: the path goes into the library and so into the fingerprint,
        # which must be the same before and after the installation.
        libdir=f"{root}/lib",
        method="wheels",
        install=not installed,
        reason=f"{what}; {said}{doubt}",
    )


def _with_ruled_out(
    plan: ToolkitPlan, against: dict[str, Blockers], unfit: list[tuple[str, str]]
) -> ToolkitPlan:
    known = []
    for version, why in against.items():
        if version == plan.version or version in {v for v, _ in unfit}:
            continue
        older = parse_version(version) < parse_version(plan.version)
        other = "older than the chosen one" if older else "not on the host"
        known.append((version, "; ".join(why.values()) or other))
    return replace(plan, ruled_out=(*unfit, *known))
