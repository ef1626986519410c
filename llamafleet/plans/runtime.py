"""Serving from a container, runtime = "container": what a host needs for it, and what proves it.

Nothing is built there: the image holds the build, and proves it when its container starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import CDI_KIND, Layout, container_of
from llamafleet.managed import Managed
from llamafleet.plans.files import misfit
from llamafleet.plans.gpus import choose
from llamafleet.plans.plan import ContainerPlan, FilesPlan, Former, Problem
from llamafleet.plans.verify import proving
from llamafleet.protocol.managers import MANAGERS
from llamafleet.protocol.result import Backend, Result
from llamafleet.received import Unreadable
from llamafleet.settings import Settings
from llamafleet.tables import parse_version

PODMAN = "4.5"
"""The first whose files of containers have all keys that are used: podman-systemd.unit(5)."""
TOOLKIT = (
    "install nvidia-container-toolkit: https://docs.nvidia.com/datacenter/cloud-native/"
    "container-toolkit/latest/install-guide.html"
)


def runtime_problems(
    settings: Settings, snapshot: HostSnapshot, backend: Backend
) -> Iterator[Problem]:
    """What keeps this host from running the container, seen before anything is done."""
    if settings.runtime != "container":
        return
    podman = snapshot.podman
    manager = MANAGERS.get(snapshot.package_manager or "")
    fix = manager.install_by_hand("podman") if manager else "install podman"
    if podman is None or parse_version(podman.version) < parse_version(PODMAN):
        found = f"podman {podman.version}" if podman else "no podman"
        yield Problem(
            "container",
            found=found,
            expected=f'podman {PODMAN} or newer, for runtime = "container"',
            next=f'{fix}, or set runtime = "venv"',
        )
    elif not snapshot.quadlet:
        yield Problem(
            "container",
            found=f"podman {podman.version} without podman-system-generator",
            expected="it in /usr/lib/systemd/system-generators: it makes units of containers",
            next=f'{fix}, or set runtime = "venv"',
        )
    if backend == "cuda" and snapshot.nvidia_ctk is None:
        yield Problem(
            "container",
            found="no nvidia-ctk",
            expected="NVIDIA's container toolkit, which describes the GPUs to podman",
            next=TOOLKIT,
        )


def plan_container(
    settings: Settings, snapshot: HostSnapshot, layout: Layout, backend: Backend, model: str
) -> ContainerPlan:
    """The container of the one profile that is served; `model`: path of its file."""
    ((name, profile),) = settings.serve.items()
    wanted = profile.gpus if profile.gpus is not None else settings.gpus
    gpus = [gpu.uuid for gpu in choose(wanted, snapshot).gpus] if wanted is not None else ["all"]
    user, group = snapshot.account_ids or (0, 0)
    assert settings.image is not None, "the inventory was checked"
    return ContainerPlan(
        image=settings.image,
        name=container_of(name),
        user=user,
        group=group,
        devices=tuple(f"{CDI_KIND}={gpu}" for gpu in gpus) if backend == "cuda" else (),
        models=str(PurePosixPath(model).parent),
        state=layout.state,
        minutes=settings.verify_minutes,
        nvidia_ctk=snapshot.nvidia_ctk.path if snapshot.nvidia_ctk and backend == "cuda" else "",
    )


def plan_former(
    row: Managed,
    snapshot: HostSnapshot,
    layout: Layout,
    files: FilesPlan,
    planned: Mapping[str, str],
) -> Former:
    """The container of that row's profile that is gone back to where its successor does not answer.

    `files`: what is written; `planned`: sha256 of what is to be there, as far as it is known.
    As with builds: while something is kept, nobody has seen what came in its place serve.
    """
    name = row.profile
    places = (
        (layout.serve_config(name), layout.former_config(name)),
        (row.path(layout), layout.former_container(name)),
    )
    kept = places[-1][-1] in snapshot.files
    there = [old if kept else path for path, old in places]
    known = kept or row.path(layout) in files.write
    same = kept and all(planned.get(path) == snapshot.files.get(old) for path, old in places)
    whole = all(_is_own(path, row, snapshot, layout) for path in there)
    image = snapshot.images.get(there[-1], "") if known and whole and not same else ""
    return Former(places, kept, image)


def _is_own(path: str, row: Managed, snapshot: HostSnapshot, layout: Layout) -> bool:
    """It is there, and nobody else can have written what podman would be told by it."""
    owner = snapshot.owners.get(path)
    fits = owner is not None and not misfit(owner, row.access(layout), snapshot)
    return fits and path in snapshot.files


def why_unproven(settings: Settings, snapshot: HostSnapshot, backend: Backend) -> str:
    """Why the result that is there does not prove what the container serves; "": it does."""
    result = snapshot.result
    if isinstance(result, Unreadable):
        return f"a result that can't be understood ({result.reason})"
    if not isinstance(result, Result):
        return "no result"
    if result.verdict not in proving(backend) or result.red:
        return f"the verdict {result.verdict}"
    if backend == "cpu":
        return ""
    driver = snapshot.driver.smi or snapshot.driver.module or snapshot.driver.library
    if result.inputs.driver != driver:
        return f"a result on driver {result.inputs.driver}, and {driver} is there"
    (profile,) = settings.serve.values()
    names = profile.gpus if profile.gpus is not None else settings.gpus
    wanted = {gpu.uuid for gpu in choose(names, snapshot).gpus}
    if missing := wanted - {row.uuid for row in result.gpus}:
        return f"a result without {', '.join(sorted(missing))}"
    return ""
