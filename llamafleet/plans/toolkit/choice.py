"""The CUDA Toolkit to build with: one that is there, or the newest that can be installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llamafleet.facts.host import HostSnapshot, Job, Toolkit
from llamafleet.layout import Layout
from llamafleet.plans.plan import Problem, ToolkitPlan
from llamafleet.plans.toolkit.compatibility import (
    Blockers,
    Case,
    blockers,
    miscompiles,
    newest_cuda,
)
from llamafleet.plans.toolkit.compiler import installable
from llamafleet.plans.toolkit.methods import Offer, offers, unoffered
from llamafleet.plans.toolkit.refusal import no_cuda, no_toolkit, nothing_offered
from llamafleet.protocol.job import UNPROVEN
from llamafleet.protocol.miscompiles import wrong_build, wrong_release
from llamafleet.settings import Settings
from llamafleet.tables import UNVERIFIED, parse_version
from llamafleet.tables.toolkits import toolkit as toolkit_row
from llamafleet.tables.toolkits import toolkits
from llamafleet.wheelhouse.manifest import Manifest, Wheelhouse


@dataclass(frozen=True)
class _Judge:
    """One host's rules for any toolkit."""

    snapshot: HostSnapshot
    settings: Settings
    house: Manifest | None
    capabilities: tuple[str, ...]
    against: dict[str, Blockers]

    def miscompiled(self, found: Toolkit | Offer) -> str:
        """Why it makes wrong code for these GPUs, known of one that fits otherwise; "": it does
        not. Of packages that are there already the nvcc is asked, of a file its name tells."""
        if found.version not in self.against or not self.fits(found.version):
            return ""
        if isinstance(found, Offer) and found.release:
            return wrong_release(miscompiles(), found.release, self.capabilities)
        there = next((tk for tk in self.snapshot.toolkits if tk.root == found.root), None)
        build = there.build if there else None
        if build is None:
            return ""
        return wrong_build(miscompiles(), build, found.version, self.capabilities)

    def fits(self, version: str) -> bool:
        """Nothing speaks against it, but for a compiler that can be installed."""
        why = self.against[version]
        return not why or (set(why) == {"compiler"} and self.compiler(version) is not None)

    def compiler(self, version: str) -> str | None:
        """The package to install for it; None: a compiler is there, or none can be installed."""
        if "compiler" not in self.against[version]:
            return None
        found = installable(self.snapshot, self.settings, toolkit_row(version))
        return found.package if found else None


def choose_toolkit(
    snapshot: HostSnapshot,
    settings: Settings,
    capabilities: Sequence[str],
    layout: Layout,
    house: Wheelhouse | None,
) -> ToolkitPlan | Problem:
    """The newest fitting toolkit that is there; else the newest to install; else why not.

    One that is there and fits is never left for a newer one: a new driver alone would otherwise
    mean a new build. Raises ValueError on a malformed compute capability.
    """
    newest = newest_cuda(snapshot.driver)
    if newest is None:
        return no_cuda(snapshot.driver)
    cuda, source = newest
    against = {r.version: blockers(r, snapshot, settings, cuda, capabilities) for r in toolkits()}
    manifest = house.manifest if house else None
    judge = _Judge(snapshot, settings, manifest, tuple(capabilities), against)
    offered = offers(snapshot, settings, layout, manifest)
    usable = [o for o in offered if judge.fits(o.version) and not judge.miscompiled(o)]

    present, unfit = _sort(snapshot, judge, layout, offered)
    ours = [_installed(o) for o in usable if installed(snapshot, o)]
    there = ours + present
    to_install = [o for o in usable if _available(snapshot, o)]
    if there:
        # One for which a compiler must be installed comes last.
        plan = max(there, key=lambda p: (not judge.compiler(p.version), parse_version(p.version)))
    elif to_install:
        plan = _to_install(snapshot, to_install[0])
    else:
        left = {v: {} if judge.fits(v) else why for v, why in against.items()}
        wrong = tuple(_miscompiled(judge, offered))
        case = Case(snapshot, settings, house, cuda, judge.capabilities, left, tuple(unfit), wrong)
        return no_toolkit(case)
    told = {plan.version, *(version for version, _ in unfit)}
    unfit += [row for row in _miscompiled(judge, offered) if row[0] not in told]
    plan = replace(
        plan,
        reason=f"{plan.reason}; driver runs CUDA up to {cuda} ({source})",
        compiler=judge.compiler(plan.version),
    )
    return replace(plan, ruled_out=(*unfit, *_not_chosen(plan, against, judge, unfit)))


def nothing_to_choose(
    snapshot: HostSnapshot, settings: Settings, layout: Layout, house: Wheelhouse | None
) -> Problem | None:
    """What is certain before driver and compiler are known: there will be no toolkit."""
    offered = offers(snapshot, settings, layout, house.manifest if house else None)
    if snapshot.toolkits or any(not offer.lacking for offer in offered):
        return None
    return nothing_offered(snapshot, settings, house)


def _job(snapshot: HostSnapshot, offer: Offer) -> Job | None:
    """The job that installs it, or has."""
    return snapshot.job("toolkit", offer.key, root=offer.of_root)


def _available(snapshot: HostSnapshot, offer: Offer) -> bool:
    """It can be installed now, or is being installed."""
    job = _job(snapshot, offer)
    return not offer.lacking or (job is not None and job.alive)


def installed(snapshot: HostSnapshot, offer: Offer) -> bool:
    """Below our own folder, complete, and its job said so."""
    job = _job(snapshot, offer)
    complete = any(t.root == offer.root and not t.missing for t in snapshot.toolkits)
    return complete and job is not None and job.ok and not job.alive


def _sort(
    snapshot: HostSnapshot, judge: _Judge, layout: Layout, offered: Sequence[Offer]
) -> tuple[list[ToolkitPlan], list[tuple[str, str]]]:
    """Those on the host that fit, and (version, "root: why not") of the others.

    Our own are judged by their job, unless the settings name one of them.
    """
    roots = {offer.root for offer in offered}
    unproven = {o.root: why for o in offered if (why := _unproven(snapshot, o))}
    there: list[ToolkitPlan] = []
    unfit: list[tuple[str, str]] = []
    for tk in sorted(snapshot.toolkits, key=lambda t: t.root):
        if tk.root.startswith(f"{layout.prefix}/toolkits/") and tk.root != _root(judge.settings):
            continue
        why = unproven.get(tk.root) or _unfit(tk, judge, roots)
        if why:
            unfit.append((tk.version or "?", f"{tk.root}: {why}"))
        else:
            reason = "newest complete toolkit on the host that fits"
            there.append(ToolkitPlan(tk.version, tk.root, tk.libdir, "present", False, reason))
    return there, unfit


def _unproven(snapshot: HostSnapshot, offer: Offer) -> str:
    """Why what lies at the offer's root is no toolkit yet; "": no job of ours speaks against it.

    A package manager's files may all be there before it has ended, or before they were tried.
    """
    job = _job(snapshot, offer)
    if job is None:
        return ""
    if job.alive:
        return f"is being installed {_by(offer)}"
    if job.unreadable:
        return f"the stamp of its installation can't be read ({job.unreadable})"
    if job.stamp is None:  # killed, or the host went down
        phase, ended = job.progress.phase if job.progress else "", "was cut off"
    else:
        phase, ended = job.stamp.error.phase if job.stamp.error else "", "failed"
    return f"its installation {ended} in phase {phase}" if phase in UNPROVEN else ""


def _root(settings: Settings) -> str:
    return (settings.toolkit_root or "").rstrip("/")


def _unfit(tk: Toolkit, judge: _Judge, roots: set[str]) -> str:
    """Why a toolkit on the host can't be used; "": it can."""
    settings = judge.settings
    if settings.toolkit_root and _root(settings) not in (tk.root, *tk.names):
        return f"toolkit_root = {settings.toolkit_root!r}"
    if settings.toolkit_method not in ("auto", "present") and tk.root not in roots:
        return f"toolkit_method = {settings.toolkit_method!r}"
    if tk.missing:
        return f"incomplete, lacks {', '.join(tk.missing)}"
    if tk.version not in judge.against:
        return f"CUDA {tk.version} is not among the known versions"
    if not judge.fits(tk.version):
        return "; ".join(judge.against[tk.version].values())
    return judge.miscompiled(tk)


def _miscompiled(judge: _Judge, offered: Sequence[Offer]) -> Iterator[tuple[str, str]]:
    """(version, "where from: why not") of what would be taken but for its compiler."""
    for tk in judge.snapshot.toolkits:
        why = judge.miscompiled(tk)
        if why and _unfit(tk, judge, {offer.root for offer in offered}) == why:
            yield tk.version, f"{tk.root}: {why}"
    for offer in offered:
        if why := judge.miscompiled(offer):
            yield offer.version, f"{_by(offer)}: {why}"


def _installed(offer: Offer) -> ToolkitPlan:
    reason = f"installed {_by(offer)}" + _doubt(offer)
    return ToolkitPlan(offer.version, offer.root, offer.libdir, offer.method, False, reason)


def _to_install(snapshot: HostSnapshot, offer: Offer) -> ToolkitPlan:
    job = _job(snapshot, offer)
    what = f"no fitting toolkit is on the host: install {_by(offer)}"
    if job and job.alive:
        what = f"is being installed {_by(offer)}"
    return ToolkitPlan(
        version=offer.version,
        root=offer.root,
        libdir=offer.libdir,
        method=offer.method,
        install=True,
        reason=what + _doubt(offer),
        source=offer.source,
        key=offer.key,
    )


def _by(offer: Offer) -> str:
    return "from wheels" if offer.method == "wheels" else f"by {offer.method}"


def _doubt(offer: Offer) -> str:
    return f"; {offer.evidence}" if offer.evidence.startswith(UNVERIFIED) else ""


def _not_chosen(
    plan: ToolkitPlan,
    against: dict[str, Blockers],
    judge: _Judge,
    unfit: list[tuple[str, str]],
) -> Iterator[tuple[str, str]]:
    """Why each other known version was not chosen."""
    told = {plan.version, *(version for version, _ in unfit)}
    for version, why in against.items():
        if version in told:
            continue
        if not judge.fits(version):
            yield version, "; ".join(why.values())
        elif parse_version(version) < parse_version(plan.version):
            yield version, "older than the chosen one"
        elif plan.install:
            yield version, unoffered(version, judge.snapshot, judge.settings, judge.house)
        else:
            yield version, "not on the host, and the chosen one is"
