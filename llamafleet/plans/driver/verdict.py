"""One verdict on the driver from all that its sources say, with evidence and the command to type.

The loaded module, the module on disk, the library and the packages may each be of another version
after an update. What decides is whether the *next boot* would bring them together again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.cure import OTHER_CARD, Kind, cure
from llamafleet.plans.driver.facts import (
    coming_module,
    disk_sentence,
    evidence,
    missing_next,
    newest,
    package_versions,
    unfinished,
    versions_sentence,
)
from llamafleet.plans.driver.foreign import culprit
from llamafleet.plans.driver.gpus import (
    Sick,
    SickState,
    branch_for,
    describe,
    full_address,
    notes_of_use,
    old_xids,
    sick_cards,
    too_old_cards,
    unseen_cards,
)
from llamafleet.plans.driver.known import MISMATCH, NO_DRIVER, is_known, known, known_of
from llamafleet.plans.driver.libcuda import compat_note, other_libcuda, without_cuda
from llamafleet.plans.driver.platform import lost_devices, windows
from llamafleet.plans.driver.repair import repair
from llamafleet.plans.gpus import choose
from llamafleet.plans.plan import Problem
from llamafleet.plans.toolkit.compatibility import newest_cuda
from llamafleet.plans.toolkit.refusal import no_cuda
from llamafleet.protocol.diagnose import Match
from llamafleet.tables import parse_version
from llamafleet.tables.toolkits import toolkits

MOST_SICK = 4
"""Cards of which a problem tells all; of more it tells the number."""

State = Literal[
    "ok",
    "reboot needed",
    "packages split",
    "module missing",
    "nouveau in the way",
    "module not signed",
    "no driver",
    SickState,
    "too old",
    "card not bound",
    "no answer",
    "no CUDA",
]

REFUSED = ("Key was rejected", "is rejected", "module loading is restricted")
"""What the kernel says of a module whose signature it does not accept. `module verification failed`
is none of these: the module was loaded all the same."""


UNFIT = (
    "nvidia: disagrees about version of symbol",
    "nvidia: version magic",
    "nvidia: Unknown symbol",
)
"""What the kernel says of a module that was built for another one."""


@dataclass(frozen=True)
class Verdict:
    """The state of a host's driver."""

    state: State
    problem: Problem | None = None
    """What stops the host; None: the driver works now."""
    notes: tuple[str, ...] = ()
    """What does not stop the host, and should be seen all the same."""
    evidence: tuple[str, ...] = ()
    """What each source says, a line each."""
    cure: Kind | None = None
    """Which kind of cure a sick card needs; None: it is not about a card."""


Blocked = tuple[State, Problem] | None


def driver_verdict(snapshot: HostSnapshot, gpus: tuple[str, ...] | None = None) -> Verdict:
    """The first thing that is wrong, from the most specific cause to the least.

    `gpus`: the setting of that name. A card that it leaves out stops nothing, whatever it has.
    """
    sick, left_out = _parted(snapshot, choose(gpus, snapshot).addresses)
    said = evidence(snapshot)
    snapshot = _without(snapshot, left_out)
    looks: tuple[Callable[[HostSnapshot], Blocked], ...] = (
        _windows,
        _foreign,
        _mismatch,
        lambda snapshot: _sick(snapshot, sick),
        _lost_devices,
        _not_bound,
        _no_answer,
        _no_cuda,
        _too_old,
        _pending,
    )
    for look in looks:
        blocked = look(snapshot)
        if blocked:
            state, problem = _finish_first(snapshot, *blocked)
            by_card = sick[0].cure if sick and state == sick[0].state else None
            return Verdict(state, problem, evidence=said, cure=by_card)
    state, after = _next_boot(snapshot)
    notes = (
        *after,
        *_odd_packages(snapshot),
        *compat_note(snapshot),
        *old_xids(snapshot),
        *(f"left out by the setting gpus: {one.found}" for one in left_out),
        *unseen_cards(snapshot),
        *notes_of_use(snapshot),
    )
    return Verdict(state, None, notes, said)


def works(snapshot: HostSnapshot) -> bool:
    return snapshot.driver.smi_state == "ok" and bool(snapshot.gpus)


def _finish_first(snapshot: HostSnapshot, state: State, problem: Problem) -> tuple[State, Problem]:
    """No reboot amid an installation: the versions on disk are not the last ones yet."""
    names = unfinished(snapshot)
    if state != "reboot needed" or not names:
        return state, problem
    return "packages split", _problem(
        f"{problem.found}; not configured: {names}",
        "packages of the driver that are installed to their end; a reboot would interrupt that",
        repair(snapshot),
    )


def _problem(found: str, expected: str, fix: str) -> Problem:
    return Problem("driver", found, expected, fix)


def _and_known(found: str, match: Match | None) -> str:
    return f"{found}; {match}" if match else found


def _windows(snapshot: HostSnapshot) -> Blocked:
    """WSL: the driver is that of Windows."""
    found = windows(snapshot)
    if not found:
        return None
    return "no answer", _problem(found.found, "nvidia-smi of Windows's driver", found.fix)


def _foreign(snapshot: HostSnapshot) -> Blocked:
    """A file that no package brought differs from all packages."""
    if missing_next(snapshot) and not snapshot.container:
        return None
    found = culprit(snapshot) if _differs_on_this_kernel(snapshot) else None
    found = found or other_libcuda(snapshot)
    if not found:
        return None
    said = f"{versions_sentence(snapshot)}; {disk_sentence(snapshot)}; {found.found}"
    return "packages split", _problem(said, _AGREE, found.fix)


def _differs_on_this_kernel(snapshot: HostSnapshot) -> bool:
    """What another kernel would load is a note, not a problem of this boot."""
    driver = snapshot.driver
    agree = driver.module == driver.library == driver.module_on_disk
    return not (agree and _only_another_kernel(snapshot))


def _lost_devices(snapshot: HostSnapshot) -> Blocked:
    found = lost_devices(snapshot)
    if not found:
        return None
    return "no answer", _problem(found.found, "a container that has its GPUs", found.fix)


def _no_cuda(snapshot: HostSnapshot) -> Blocked:
    found = without_cuda(snapshot)
    if not found:
        return None
    return "no CUDA", _problem(found.found, "a CUDA version, which comes from libcuda", found.fix)


def _mismatch(snapshot: HostSnapshot) -> Blocked:
    """Loaded module and library are of different versions: nothing works until they agree."""
    driver = snapshot.driver
    by_words = is_known(driver.smi_error, MISMATCH)
    differ = bool(driver.module and driver.library and driver.module != driver.library)
    if not differ and not by_words:
        return None
    # Versions that differ say more than the words.
    match = None if differ else known(driver.smi_error)
    found = versions_sentence(snapshot)
    if by_words:
        found += f" (nvidia-smi: {driver.smi_error})"
    found = _and_known(found, match)
    if snapshot.container:
        problem = _problem(
            found,
            "the library of the host's module, which a container can't change",
            cure("library-of-host", snapshot),
        )
        return "packages split", problem
    if missing_next(snapshot):
        return "module missing", _missing_problem(snapshot, found)
    wrong = _no_better_after_reboot(snapshot)
    if wrong:
        return "packages split", _problem(f"{found}; {wrong}", _AGREE, repair(snapshot))
    return "reboot needed", _problem(
        found, _REBOOT, match.fix if match else cure("reboot", snapshot)
    )


_AGREE = "all parts of the driver of one version; a reboot alone will not help"
_REBOOT = "the same version of both; a driver update takes effect at the next boot"


def _no_better_after_reboot(snapshot: HostSnapshot) -> str:
    """Why module and library would still differ after a reboot; "": nothing says so."""
    driver = snapshot.driver
    coming = coming_module(snapshot)
    if len(package_versions(snapshot)) > 1:
        return f"the packages disagree: {disk_sentence(snapshot)}"
    if coming and driver.library and coming != driver.library:
        return f"a reboot would load module {coming} beside library {driver.library}"
    if coming and not driver.library and coming == driver.module:
        return f"a reboot would load module {coming} again"
    older = driver.module and driver.library and newest(driver.module, driver.library)
    if not coming and older and older == driver.module and not package_versions(snapshot):
        return f"the library {driver.library} is the older one, and no newer one was installed"
    return ""


def _pending(snapshot: HostSnapshot) -> Blocked:
    """All works, but the running kernel's driver was updated and the next boot loads that."""
    driver = snapshot.driver
    if snapshot.container or not driver.module or missing_next(snapshot):
        return None
    coming = coming_module(snapshot)
    packages = package_versions(snapshot)
    if coming == driver.module or _only_another_kernel(snapshot):
        return None
    found = versions_sentence(snapshot)
    on_disk = disk_sentence(snapshot)
    if coming is None:
        if len(packages) > 1:
            return "packages split", _problem(f"{found}; {on_disk}", _AGREE, repair(snapshot))
        only = next(iter(packages), None)
        if only is None or newest(only, driver.module) == driver.module:
            return None
    elif len(packages) > 1 or (driver.library and packages.keys() != {coming}):
        return "packages split", _problem(f"{found}; {on_disk}", _AGREE, repair(snapshot))
    return "reboot needed", _problem(f"{found}; {on_disk}", _REBOOT, cure("reboot", snapshot))


def _only_another_kernel(snapshot: HostSnapshot) -> bool:
    """The running kernel's own module is as loaded: only a boot of another kernel changes it."""
    driver = snapshot.driver
    other = driver.next_kernel not in (None, snapshot.kernel)
    return other and driver.module_on_disk == driver.module


def _next_boot(snapshot: HostSnapshot) -> tuple[State, tuple[str, ...]]:
    """What will happen to a driver that works now."""
    driver = snapshot.driver
    if snapshot.container or not driver.module:
        return "ok", ()
    kernel = driver.next_kernel
    if missing_next(snapshot):
        note = (
            f"THE NEXT BOOT LOSES THE GPUS: kernel {kernel} boots next and has no module nvidia "
            f"(running: {snapshot.kernel} with {driver.module}); next: {repair(snapshot)}"
        )
        return "module missing", (note,)
    coming = coming_module(snapshot)
    if coming and coming != driver.module:
        note = (
            f"THE NEXT BOOT BREAKS THE DRIVER: kernel {kernel} boots next with module {coming}, "
            f"the library is {driver.library or 'unknown'}; next: {repair(snapshot)}"
        )
        return "packages split", (note,)
    return "ok", ()


def _odd_packages(snapshot: HostSnapshot) -> tuple[str, ...]:
    """Packages of another version than the driver that works now and after the next boot."""
    module = snapshot.driver.module
    if snapshot.container or not module:
        return ()
    others = {v: names for v, names in package_versions(snapshot).items() if v != module}
    listed = "; ".join(f"{', '.join(names)} {version}" for version, names in others.items())
    return (f"packages of another version than the driver {module}: {listed}",) if others else ()


def _missing_problem(snapshot: HostSnapshot, found: str) -> Problem:
    kernel = snapshot.driver.next_kernel or snapshot.kernel
    return _problem(
        f"{found}; no module nvidia for kernel {kernel}",
        f"the driver's module for kernel {kernel}, which boots next",
        repair(snapshot),
    )


def _parted(
    snapshot: HostSnapshot, chosen: frozenset[str] | None
) -> tuple[tuple[Sick, ...], tuple[Sick, ...]]:
    """Sick cards that stop the host, and those that the setting `gpus` leaves out."""
    found = sick_cards(snapshot)
    out = tuple(
        one for one in found if chosen is not None and one.address and one.address not in chosen
    )
    return tuple(one for one in found if one not in out), out


def _without(snapshot: HostSnapshot, left_out: tuple[Sick, ...]) -> HostSnapshot:
    """nvidia-smi fails as a whole over one card: without that card it has answered."""
    places = [one.address.rpartition(".")[0] for one in left_out]
    driver = snapshot.driver
    explained = driver.complaints and all(
        any(place in said.lower() for place in places) for said in driver.complaints
    )
    if driver.smi_state != "failed" or not snapshot.gpus or not explained:
        return snapshot
    return replace(snapshot, driver=replace(driver, smi_state="ok"))


def _sick(snapshot: HostSnapshot, sick: tuple[Sick, ...]) -> Blocked:
    """Cards that are gone, ill, refused or closed; the others go on only if `gpus` says so."""
    if not sick:
        return None
    first = sick[0]
    found = "; ".join(one.found for one in sick[:MOST_SICK])
    if len(sick) > MOST_SICK:
        found += f"; and {len(sick) - MOST_SICK} more"
    fix = cure(first.cure, snapshot, first.about)
    ill = {one.address for one in sick}
    shown = dict.fromkeys(full_address(gpu.pci_address) for gpu in snapshot.gpus)
    stay = [address for address in shown if address not in ill]
    if stay and "" not in ill:
        fix += f"; {cure('leave-out', snapshot, ' '.join(stay))}"
    return first.state, _problem(_and_known(found, known(first.found)), first.expected, fix)


def _not_bound(snapshot: HostSnapshot) -> Blocked:
    """Cards are there, and the nvidia module has none of them."""
    cards = snapshot.pci_gpus
    if works(snapshot) or not cards or any(card.kernel_driver == "nvidia" for card in cards):
        return None
    driver = snapshot.driver
    bound = {card.kernel_driver for card in cards}
    found = "; ".join(f"{describe(c)} bound to {c.kernel_driver or 'nothing'}" for c in cards)
    expected = "the kernel module nvidia"
    if "nouveau" in bound:
        fix = f"install NVIDIA's driver, which blocks nouveau: {cure('install-driver', snapshot)}"
        if driver.module_on_disk:
            found += f" (module nvidia {driver.module_on_disk} is on disk)"
            fix = cure("blacklist-nouveau", snapshot)
        return "nouveau in the way", _problem(found, expected, fix)
    if bound != {None}:
        bound_card = next(card for card in cards if card.kernel_driver)
        fix = cure("unbind-card", snapshot, full_address(bound_card.address))
        return "card not bound", _problem(found, expected, fix)
    if driver.module_on_disk:
        return _not_loaded(snapshot, found, expected)
    if driver.module_next is not None and driver.next_kernel != snapshot.kernel:
        found += f"; the module is there for kernel {driver.next_kernel}, {snapshot.kernel} runs"
        return "reboot needed", _problem(found, expected, cure("reboot", snapshot))
    if not snapshot.container and (package_versions(snapshot) or driver.dkms or driver.library):
        return "module missing", _missing_problem(snapshot, found)
    fix = f"install NVIDIA's driver for this kernel: {cure('install-driver', snapshot)}"
    return "no driver", _problem(found, expected, fix)


def _not_loaded(snapshot: HostSnapshot, found: str, expected: str) -> Blocked:
    """The module is on disk and not in the kernel: refused, or never asked for."""
    driver = snapshot.driver
    refused = [line for line in driver.kernel_log or () if any(part in line for part in REFUSED)]
    unsigned = driver.secure_boot is True and driver.module_signer == ""
    if not driver.module and (refused or unsigned):
        signed = f"signed by {driver.module_signer}" if driver.module_signer else "not signed"
        boot = {True: "on", False: "off", None: "unknown"}[driver.secure_boot]
        why = f"; kernel: {refused[-1]}" if refused else ""
        return "module not signed", _problem(
            f"{found}; secure boot {boot}, module nvidia {driver.module_on_disk} {signed}{why}",
            "a module signed with a key that this machine accepts",
            cure("sign-module", snapshot),
        )
    foreign = [line for line in driver.kernel_log or () if any(part in line for part in UNFIT)]
    if not driver.module and foreign:
        return "module missing", _problem(
            f"{found}; kernel: {foreign[-1]}",
            f"a module nvidia that was built for kernel {snapshot.kernel}",
            _built_anew(snapshot),
        )
    return "card not bound", _problem(found, expected, cure("load-module", snapshot))


def _built_anew(snapshot: HostSnapshot) -> str:
    """dkms keeps what it has built, unless it is forced."""
    words = cure("rebuild-module", snapshot)
    return words.replace("dkms autoinstall", "dkms autoinstall --force")


def _too_old(snapshot: HostSnapshot) -> Blocked:
    """No toolkit that is known here runs on this driver."""
    driver = snapshot.driver
    if not (driver.cuda or driver.smi or driver.module or driver.library):
        return None
    cuda = newest_cuda(driver)
    base = no_cuda(driver)
    if cuda is None:
        return "too old", base
    oldest = toolkits()[-1]
    if parse_version(cuda[0]) >= oldest.order:
        return None
    if old := too_old_cards(snapshot):
        fix = f"no driver that knows {old} has CUDA {oldest.version}: {OTHER_CARD}"
        return "too old", replace(base, found=f"{base.found} (CUDA {cuda[0]}); {old}", next=fix)
    found = f"{base.found}, which runs CUDA up to {cuda[0]} ({cuda[1]})"
    expected = f"CUDA {oldest.version} or newer, the oldest toolkit that is supported"
    fix = f"{base.next}: {cure(*branch_for(snapshot))}"
    return "too old", replace(base, found=found, expected=expected, next=fix)


def _why_it_fails(snapshot: HostSnapshot) -> Kind:
    """By nvidia-smi's own words."""
    said = snapshot.driver.smi_error
    if "Insufficient Permissions" in said:
        return "device-rights"
    if "couldn't find libnvidia-ml" in said:
        return "give-gpus" if snapshot.container else "install-tools"
    # The module is there, so it is the nodes that a container lacks.
    inside = snapshot.container and snapshot.driver.module
    return "give-gpus" if inside and is_known(said, NO_DRIVER) else "read-log"


def _no_answer(snapshot: HostSnapshot) -> Blocked:
    """The versions agree and the card is bound, and still nvidia-smi shows no GPU."""
    if works(snapshot):
        return None
    driver = snapshot.driver
    said = f": {driver.smi_error}" if driver.smi_error else ""
    if driver.smi_state == "timeout":
        found = "nvidia-smi does not answer within its time limit; the cause is unknown"
        fix = (
            "time sudo nvidia-smi; where it ends after all, persistence is off and each call "
            "starts the GPUs anew: sudo nvidia-smi -pm 1, or enable nvidia-persistenced; else "
            f"{cure('read-log', snapshot)}"
        )
    elif driver.smi_state == "garbage":
        found = f"nvidia-smi ends well, but its answer is not understood{said}"
        fix = "run nvidia-smi on the host; reinstall the driver's utilities"
    elif driver.smi_state == "failed":
        found = f"nvidia-smi failed{said}"
        fix = cure(_why_it_fails(snapshot), snapshot)
    elif driver.smi_state == "ok":
        found = "nvidia-smi answers and shows no GPU"
        fix = "nvidia-smi -L; sudo dmesg | grep -iE 'nvrm|xid'"
    elif snapshot.container:
        found = f"no nvidia-smi in this container ({snapshot.container})"
        fix = cure("give-gpus", snapshot)
    else:
        found = f"kernel module {driver.module or 'of unknown version'}, but no nvidia-smi"
        fix = (
            "install the driver's utilities (nvidia-utils, nvidia-smi) of the module's version: "
            f"{cure('install-tools', snapshot)}"
        )
    cards = ", ".join(describe(card) for card in snapshot.pci_gpus)
    # Where there is no nvidia-smi, that is the cause, whatever the log of the machine holds.
    match = known_of(snapshot) if driver.smi_state != "absent" else None
    return "no answer", _problem(
        _and_known(f"{found}{f' ({cards} is there)' if cards else ''}", match),
        "nvidia-smi that lists the GPUs",
        match.fix if match and not snapshot.container else fix,
    )
