"""Which GPUs the setting `gpus` chooses, and what that changes in a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import Gpu, HostSnapshot, PciGpu
from llamafleet.plans.gpus import Chosen, address, chosen
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
    Gpu(0, "NVIDIA H100 MIG 1g.10gb", f"MIG-{n}000000{n}-cc", BIG.pci_address, "9.0", 9984)
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
    assert choice(PAIR) == Chosen(PAIR.gpus, PAIR.pci_gpus)


@pytest.mark.parametrize(
    "name", ["GPU-bbbb0000-2", "GPU-bbbb0000", "0000:3c:00.0", "3c:00.0", "1", 1]
)
def test_each_form_of_a_name_names_the_same(name: Any) -> None:
    found = choice(PAIR, name)
    assert (found.gpus, found.cards) == ((SMALL,), CARDS[1:])
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
    assert (found.cards, found.problem) == (CARDS[:1], None)
    assert found.left_out == ("NVIDIA GPU (10de:2531 at 0000:3c:00.0)",)


def test_a_card_that_the_driver_does_not_show_is_chosen_where_it_is_named() -> None:
    found = choice(SICK, "0", "3c:00.0")
    assert (found.cards, found.left_out) == (CARDS, ())


def test_a_name_that_nobody_has_may_be_the_sick_card_s() -> None:
    found = choice(SICK, BIG.uuid, SMALL.uuid)
    assert found.cards == CARDS and found.left_out == ()
    assert found.problem and SMALL.uuid in found.problem.found
    assert "which the driver does not show" in found.problem.found


def test_a_divided_gpu_is_chosen_by_its_address_or_by_an_instance() -> None:
    assert uuids(DIVIDED, "1b:00.0") == [one.uuid for one in SLICES]
    assert uuids(DIVIDED, SLICES[1].uuid) == [SLICES[1].uuid]
    assert choice(DIVIDED, SLICES[1].uuid).cards == CARDS[:1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:1B:00.0", "0000:1b:00.0"),
        ("0000:1b:00.0", "0000:1b:00.0"),
        ("1b:00.0", "0000:1b:00.0"),
        ("0001:1b:00.0", "0001:1b:00.0"),
    ],
)
def test_addresses(text: str, expected: str) -> None:
    assert address(text) == expected


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
    same = replace(PAIR, gpus=(BIG, replace(BIG, index=1, uuid=SMALL.uuid)))
    assert build_of(same).fingerprint == build_of(same, gpus=["0"]).fingerprint
