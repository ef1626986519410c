"""Which GPUs the setting `gpus` chooses, and what that changes in a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import Gpu, HostSnapshot, PciGpu
from llamafleet.plans.gpus import Chosen, chosen
from llamafleet.plans.make import explain
from llamafleet.settings import Settings
from tests.plans.hosts import GPU_HOST, build_of, only_problem, plan, toolkit

BIG = Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-aaaa0000-1", "00000000:1B:00.0", "9.0", 81559)
SMALL = Gpu(1, "NVIDIA RTX A2000", "GPU-bbbb0000-2", "00000000:3C:00.0", "8.6", 6138)
CARDS = (PciGpu("0000:1b:00.0", "2330", "nvidia"), PciGpu("0000:3c:00.0", "2531", "nvidia"))
PAIR = replace(GPU_HOST, gpus=(BIG, SMALL), pci_gpus=CARDS, toolkits=(toolkit("13.0"),))
SICK = replace(PAIR, gpus=(BIG,))
"""The driver does not show the second card."""
SLICES = tuple(
    replace(
        BIG,
        name="NVIDIA H100 MIG 1g.10gb",
        uuid=f"MIG-{n}000000{n}-cc",
        vram_mib=9984,
        parent=BIG.uuid,
    )
    for n in (1, 2)
)
DIVIDED = replace(PAIR, gpus=(*SLICES, SMALL), driver=replace(PAIR.driver, mig=True))


def choice(host: HostSnapshot, *names: Any) -> Chosen:
    return chosen(Settings(gpus=list(names) or None), host)


def uuids(host: HostSnapshot, *names: Any) -> list[str]:
    found = choice(host, *names)
    assert found.problem is None, found.problem
    return [gpu.uuid for gpu in found.gpus]


def test_without_the_setting_all_are_chosen() -> None:
    assert choice(PAIR) == Chosen(PAIR.gpus)


@pytest.mark.parametrize(
    "name", ["GPU-bbbb0000-2", "GPU-bbbb0000", "0000:3c:00.0", "3c:00.0", "1", 1]
)
def test_each_form_of_a_name_names_the_same(name: Any) -> None:
    found = choice(PAIR, name)
    assert (found.gpus, found.addresses) == ((SMALL,), {"0000:3c:00.0"})
    assert found.left_out == ("NVIDIA H100 80GB HBM3 GPU-aaaa0000-1",)
    assert found.problem is None


def test_the_order_is_the_host_s_and_all_may_be_named() -> None:
    assert uuids(PAIR, "1", "GPU-aaaa0000-1") == [BIG.uuid, SMALL.uuid]
    assert choice(PAIR, "0", "1").left_out == ()


def test_a_name_that_fits_nothing_is_a_problem_that_shows_what_is_there() -> None:
    problem = choice(PAIR, "0", "2", "GPU-dddd0000").problem
    assert problem is not None
    assert problem.found.startswith("2, GPU-dddd0000, which no GPU of this host has")
    for there in ("0: NVIDIA H100 80GB HBM3 GPU-aaaa0000-1 at 0000:1b:00.0", SMALL.uuid):
        assert there in problem.found


def test_two_names_of_one_gpu_are_a_problem() -> None:
    problem = choice(PAIR, "GPU-aaaa0000-1", "1b:00.0").problem
    assert problem and problem.found.startswith("GPU-aaaa0000-1, 1b:00.0, names of one GPU")


def test_a_beginning_that_two_gpus_share_is_a_problem() -> None:
    twins = replace(PAIR, gpus=(BIG, replace(SMALL, uuid="GPU-aaaa0000-2")))
    problem = choice(twins, "GPU-aaaa0000").problem
    assert problem and "with which more than one GPU begins" in problem.found


def test_a_card_that_the_driver_does_not_show_is_left_out_where_others_are_named() -> None:
    found = choice(SICK, BIG.uuid)
    assert (found.addresses, found.problem) == ({"0000:1b:00.0"}, None)
    assert found.left_out == ("NVIDIA GPU (10de:2531 at 0000:3c:00.0)",)


def test_a_card_that_the_driver_does_not_show_must_work_where_it_is_named() -> None:
    found = choice(SICK, "0", "3c:00.0")
    assert (found.addresses, found.left_out) == ({"0000:1b:00.0", "0000:3c:00.0"}, ())
    assert found.problem and found.problem.found.startswith("3c:00.0, which no GPU of this host")


def test_a_name_that_nobody_has_may_be_the_sick_card_s() -> None:
    found = choice(SICK, BIG.uuid, SMALL.uuid)
    assert found.addresses is None and found.left_out == ()
    assert found.problem and SMALL.uuid in found.problem.found
    assert "which the driver does not show" in found.problem.found


def test_a_card_that_was_given_to_a_virtual_machine_is_none_to_use() -> None:
    away = replace(SICK, pci_gpus=(CARDS[0], replace(CARDS[1], kernel_driver="vfio-pci")))
    assert plan(away).problems == () and plan(away, gpus=["0"]).problems == ()
    assert only_problem(plan(away, gpus=["0", "3c:00.0"])).check == "gpus"


def test_a_sick_card_stops_its_host_unless_it_is_left_out() -> None:
    assert [problem.check for problem in plan(SICK).problems] == ["driver"]
    assert plan(SICK, gpus=[BIG.uuid]).problems == ()
    for names in ([BIG.uuid, "3c:00.0"], [BIG.uuid, SMALL.uuid]):
        assert [problem.check for problem in plan(SICK, gpus=names).problems] == ["driver"]


def test_a_divided_gpu_is_chosen_by_its_address_or_by_an_instance() -> None:
    assert uuids(DIVIDED, "1b:00.0") == [one.uuid for one in SLICES]
    assert uuids(DIVIDED, SLICES[1].uuid) == [SLICES[1].uuid]
    assert uuids(DIVIDED, BIG.uuid) == [one.uuid for one in SLICES]
    assert choice(DIVIDED, SLICES[1].uuid).addresses == {"0000:1b:00.0"}


# -- what it changes in a plan ----------------------------------------------------------------


def test_a_plan_is_made_for_the_chosen_alone() -> None:
    both, one = plan(PAIR), plan(PAIR, gpus=[BIG.uuid])
    assert both.build and one.build and both.verify and one.verify
    assert both.build.inputs.compute_capabilities == ("8.6", "9.0")
    assert one.build.inputs.compute_capabilities == ("9.0",)
    assert both.verify.config.inputs.model == "synthetic:1b-q4_0"
    config = one.verify.config
    assert config.inputs.model == "synthetic:7b-q4_0"
    assert config.inputs.gpus == ("NVIDIA H100 80GB HBM3 GPU-aaaa0000-1",)
    assert config.gpus == (BIG.uuid,) and both.verify.config.gpus == ()
    assert one.verify.key != both.verify.key
    assert "note: uses 1 of 2 GPUs; left out: NVIDIA RTX A2000 GPU-bbbb0000-2" in explain(one)


def test_a_gpu_of_no_known_capability_does_not_hinder_where_it_is_left_out() -> None:
    old = replace(PAIR, gpus=(BIG, replace(SMALL, compute_capability=None)))
    assert only_problem(plan(old)).check == "compute_capabilities"
    assert plan(old, gpus=["0"]).problems == ()


def test_a_name_that_fits_nothing_stops_the_host() -> None:
    assert only_problem(plan(PAIR, gpus=["7"])).check == "gpus"


def test_the_cpu_needs_no_gpu() -> None:
    made = plan(PAIR, gpus=["7"], accelerator="cpu")
    assert made.problems == () and made.verify and made.verify.config.gpus == ()


def test_a_host_that_names_a_gpu_and_has_none_is_not_built_for_the_cpu() -> None:
    bare = replace(PAIR, gpus=(), pci_gpus=(), driver=type(PAIR.driver)())
    assert plan(bare, accelerator="auto").problems == ()
    assert "gpus" in [
        problem.check for problem in plan(bare, gpus=[0], accelerator="auto").problems
    ]


def test_of_a_driver_that_does_not_work_the_names_are_not_judged() -> None:
    down = replace(PAIR, gpus=(), driver=replace(PAIR.driver, smi_state="failed", smi_error="x"))
    assert [problem.check for problem in plan(down, gpus=["0"]).problems] == ["driver"]


def test_the_model_fits_the_smallest_instance() -> None:
    made = plan(DIVIDED, gpus=["1b:00.0"])
    assert made.verify and made.verify.config.inputs.model == "synthetic:7b-q4_0"
    small = tuple(replace(one, vram_mib=4864) for one in SLICES)
    made = plan(replace(DIVIDED, gpus=(*small, SMALL)), gpus=["1b:00.0"])
    assert made.verify and made.verify.config.inputs.model == "synthetic:1b-q4_0"
    untold = replace(PAIR, driver=replace(PAIR.driver, mig=True))
    made = plan(untold, gpus=[BIG.uuid])
    assert made.verify and made.verify.config.inputs.model == "synthetic:1b-q4_0"


def test_the_choice_is_no_part_of_the_machine_code() -> None:
    twin = replace(BIG, index=1, uuid=SMALL.uuid, pci_address=SMALL.pci_address)
    same = replace(PAIR, gpus=(BIG, twin))
    assert build_of(same).fingerprint == build_of(same, gpus=["0"]).fingerprint
