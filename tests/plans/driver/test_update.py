"""After a driver update a host gets exactly the work that it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet import render
from llamafleet.facts.host import Driver, HostSnapshot
from llamafleet.onhost.verify import gpu as onhost_gpu
from llamafleet.onhost.verify.evidence import Faults
from llamafleet.onhost.verify.session import Verification
from llamafleet.plans.plan import Plan
from llamafleet.protocol import verify as verify_config
from llamafleet.protocol.result import Result
from tests.onhost.verify.test_gpu import Recorded
from tests.plans.hosts import (
    GPU_HOST,
    driver,
    gpu,
    only_problem,
    plan,
    proven,
    there,
    toolkit,
    with_builds,
)

BARE = replace(GPU_HOST, gpus=(gpu("8.9"),), toolkits=(toolkit("12.2"), toolkit("12.8")))


def deployed(snapshot: HostSnapshot, made: Plan) -> HostSnapshot:
    """The host after a deploy of that plan, verified with PASS; older builds are still there."""
    assert made.build and made.verify, made.problems
    return replace(with_builds(snapshot, there(made.build)), result=proven(made.verify))


def boot(snapshot: HostSnapshot, new: Driver) -> HostSnapshot:
    return replace(snapshot, driver=new)


UNDER_570 = deployed(boot(BARE, driver("570")), plan(boot(BARE, driver("570"))))
UNDER_535 = deployed(boot(UNDER_570, driver("535")), plan(boot(UNDER_570, driver("535"))))

UPDATES: dict[str, tuple[HostSnapshot, str, str, str, str]] = {
    # host, driver now: toolkit, build, why it is verified ("": it is not)
    "none": (UNDER_570, "570", "12.8", "none", ""),
    "570 -> 580": (UNDER_570, "580", "12.8", "none", "driver 570.54.03 -> 580.159.04"),
    "570 -> 535": (UNDER_570, "535", "12.2", "build", "driver 570.54.03 -> 535.54.03"),
    "535 -> 570": (UNDER_535, "570", "12.8", "none", "driver 535.54.03 -> 570.54.03"),
}


@pytest.mark.parametrize("update", UPDATES)
def test_an_update(update: str) -> None:
    host, branch, version, action, reason = UPDATES[update]
    made = plan(boot(host, driver(branch)))
    assert made.toolkit and made.build and made.verify, made.problems
    assert (made.toolkit.version, made.build.action) == (version, action)
    assert made.verify.needed is bool(reason) and reason in made.verify.reason
    assert not made.toolkit.install
    # Back under an older driver its build is there still; `current` follows the verification.
    moves = update in ("570 -> 535", "535 -> 570")
    assert (made.build.name == host.current) is not moves
    assert (made.switch is not None) is moves and not (made.switch and made.switch.proven)


def test_without_a_toolkit_for_the_driver_one_is_installed_or_it_is_a_problem() -> None:
    only_128 = boot(replace(UNDER_570, toolkits=(toolkit("12.8"),)), driver("535"))
    made = plan(only_128)
    assert made.toolkit and (made.toolkit.version, made.toolkit.install) == ("12.2", True)
    assert made.build and made.build.action == "build"
    assert only_problem(plan(only_128, toolkit_method="present")).check == "toolkit"


NEW = "580.159.04"


@pytest.mark.parametrize(
    ("on_disk", "advice", "reboot"),
    [(NEW, "sudo reboot", True), ("570.54.03", "install the driver again", False)],
)
def test_half_an_update_stops_the_host(on_disk: str, advice: str, reboot: bool) -> None:
    half = driver("570", library=NEW, module_on_disk=on_disk)
    problem = only_problem(plan(boot(UNDER_570, half)))
    assert problem.check == "driver" and problem.next.startswith(advice)
    assert f"module 570.54.03, library {NEW}" in problem.found
    assert ("takes effect at the next boot" in problem.expected) is reboot


def verified_by_itself(host: HostSnapshot, monkeypatch: pytest.MonkeyPatch, root: Path) -> Result:
    """The result that the host writes under driver 580 with the settings of this deploy."""
    made = plan(host)
    assert made.build and made.verify
    file = root / "verify.json"
    file.write_bytes(render.verify_config(made.verify))
    config = replace(verify_config.load(file), job=str(root))
    monkeypatch.setattr(onhost_gpu, "Nvml", lambda nvml=onhost_gpu.Nvml: nvml(Recorded()))
    run = Verification(config, Faults())
    return replace(proven(made.verify), key=run.key, inputs=run.inputs)


def test_what_the_host_verified_by_itself_is_not_verified_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    updated = boot(UNDER_570, driver("580"))
    result = verified_by_itself(UNDER_570, monkeypatch, tmp_path)
    made = plan(replace(updated, result=result))
    assert made.build and made.build.action == "none"
    assert made.verify and not made.verify.needed, made.verify.reason
    other_gpu = replace(updated, gpus=(gpu("8.9", index=1),), result=result)
    again = plan(other_gpu).verify
    assert again and again.needed and "gpus" in again.reason
