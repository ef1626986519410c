"""Which host's wheel a host installs, and what a wheel must be for that."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.plan import BuildPlan, Problem
from llamafleet.protocol.job import BuildProduct, SharedWheel
from llamafleet.settings import Settings
from llamafleet.tables.cpu_baselines import BASELINES, MACHINE

MOST_BYTES = 1 << 30
"""Of a wheel; the guide's recipe for one GPU gives 270 MB, ours 45 MB."""

# As pip writes it: binary distribution format, "File name convention".
_NAME = re.compile(
    r"llama_cpp_python-[0-9][0-9.]{0,30}(post[0-9]+)?-py3-none-linux_[a-z0-9_]{3,20}\.whl"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIBRARY = re.compile(r"llama_cpp/lib/lib[A-Za-z0-9._+-]{1,200}")
_MACRO = re.compile(r"[A-Z0-9_]{1,40}")


@dataclass(frozen=True)
class Offer:
    """What one host of a run has or will have of a build that may be shared."""

    host: str
    key: str
    """The fingerprint."""
    does: Literal["build", "attach", "has", "none"]
    """build: it must build; attach: it is building; has: it kept its wheel; none: it did not."""
    anew: bool = False
    """It is to build whatever is there."""


def offer_of(host: str, settings: Settings, snapshot: HostSnapshot, build: BuildPlan) -> Offer:
    """Of a host with build_sharing = "wheel"."""
    does: Literal["build", "attach", "has", "none"]
    if build.action == "none":
        there = snapshot.builds.get(build.name)
        does = "has" if there and there.product and there.product.wheel else "none"
    else:
        does = build.action
    return Offer(host, build.fingerprint, does, anew=settings.rebuild)


def maker_of(
    host: str, offers: Sequence[Offer], stored: Collection[str], fresh: Collection[str]
) -> str | None:
    """The host whose wheel this one installs, be it its own; None: it waits for no host.

    `offers`: of the hosts that are still at it, in the inventory's order. `stored`: fingerprints
    whose wheel the controller has; `fresh`: those of them that were built in this run.
    """
    mine = next((offer for offer in offers if offer.host == host), None)
    if mine is None or mine.does != "build":
        return None
    if mine.key in fresh or (mine.key in stored and not mine.anew):
        return None
    others = [offer for offer in offers if offer.key == mine.key]
    wanted = ("build", "attach") if mine.anew else ("has", "attach", "build")
    makers = sorted(
        (offer for offer in others if offer.does in wanted and (offer.anew or not mine.anew)),
        key=lambda offer: () if mine.anew else (wanted.index(offer.does),),
    )
    return makers[0].host


def gives(
    host: str, offers: Sequence[Offer], stored: Collection[str], fresh: Collection[str]
) -> bool:
    """Others of this run wait for the wheel that this host has kept."""
    return any(
        maker_of(offer.host, offers, stored, fresh) == host
        for offer in offers
        if offer.host != host
    )


def sharing_lines(
    offers: Sequence[Offer], stored: Iterable[str], fresh: Iterable[str]
) -> list[str]:
    """Who builds what for whom, a line for each wheel."""
    known, new = set(stored), set(fresh)
    takers: dict[tuple[str, str], list[str]] = {}
    for offer in offers:
        maker = maker_of(offer.host, offers, known, new)
        if maker is None and offer.does == "build":
            maker = "this controller"
        if maker not in (None, offer.host):
            takers.setdefault((str(maker), offer.key), []).append(offer.host)
    return [
        f"build {key[:8]}: the wheel of {maker} is for {', '.join(hosts)}"
        for (maker, key), hosts in takers.items()
    ]


def wheel_of(host: str, product: BuildProduct) -> SharedWheel | str:
    """The wheel that a host says it kept, or why that can't be one."""
    libraries = {
        path.partition("/site-packages/")[2]: sha256 for path, sha256 in product.libraries.items()
    }
    wheel = SharedWheel(
        host=host,
        name=product.wheel,
        sha256=product.wheel_sha256 or "",
        size=product.wheel_bytes or 0,
        libraries=libraries,
        needs=product.needs,
        nvcc=product.nvcc,
    )
    return unsound(wheel) or wheel


def unsound(wheel: SharedWheel) -> str:
    """Why it can be no wheel of ours; "": it can. Its name becomes a path, its texts are shown."""
    wrong = {
        "name": not _NAME.fullmatch(wheel.name) or PurePosixPath(wheel.name).name != wheel.name,
        "sha256": not _SHA256.fullmatch(wheel.sha256),
        "size": not 0 < wheel.size <= MOST_BYTES,
        "libraries": not wheel.libraries
        or not all(
            _LIBRARY.fullmatch(path) and _SHA256.fullmatch(digest)
            for path, digest in wheel.libraries.items()
        ),
        "needs": not all(map(_MACRO.fullmatch, wheel.needs)),
    }
    found = [name for name, bad in wrong.items() if bad]
    return f"found no sound {', '.join(found)} in its stamp" if found else ""


def cpu_problem(settings: Settings, snapshot: HostSnapshot) -> Problem | None:
    """A CPU that lacks what the baseline asks for would end in SIGILL."""
    if settings.cpu_baseline is None:
        return None
    named = f"cpu_baseline = {settings.cpu_baseline!r}"
    if snapshot.arch != MACHINE:
        return Problem(
            "cpu_baseline",
            found=f"machine {snapshot.arch or 'unknown'}",
            expected=f"{MACHINE} for {named}",
            next="remove cpu_baseline for this host",
        )
    lacks = sorted(BASELINES[settings.cpu_baseline].flags - set(snapshot.cpu_flags))
    if not lacks:
        return None
    fits = [name for name, row in BASELINES.items() if row.flags <= set(snapshot.cpu_flags)]
    advice = f"set cpu_baseline = {fits[-1]!r}" if fits else "remove cpu_baseline"
    return Problem(
        "cpu_baseline",
        found=f"a CPU that lacks {', '.join(lacks)} ({snapshot.cpu or 'of unknown name'})",
        expected=f"all flags of {named}",
        next=f"{advice} for this host",
    )
