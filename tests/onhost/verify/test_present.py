"""Which GPUs are judged: by NVML, the PCI bus, the plan and the settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llamafleet.onhost.cards import Card
from llamafleet.onhost.verify.gpu import Gpu
from llamafleet.onhost.verify.present import Present, chosen, present
from llamafleet.protocol.verify import VerifyConfig, parse
from tests.protocol.test_verify import good

H100 = "NVIDIA H100 80GB HBM3"


def gpu(number: int, uuid: str = "") -> Gpu:
    return Gpu(number, H100, uuid or f"GPU-{number}", f"0000:0{number + 1}:00.0", "9.0", 81559)


def card(number: int, **changes: Any) -> Card:
    told = Card(f"0000:0{number + 1}:00.0", H100, f"GPU-{number}", number)
    return replace(told, **changes)


def config(*names: str, planned: tuple[int, ...] = (0, 1)) -> VerifyConfig:
    base = parse(Path("verify.json"), good())
    inputs = replace(base.inputs, gpus=tuple(gpu(number).identity for number in planned))
    return replace(base, inputs=inputs, gpus=names)


PAIR, CARDS = (gpu(0), gpu(1)), (card(0), card(1))


def test_all_there_is() -> None:
    found = present(PAIR, CARDS, config())
    assert found == Present(PAIR)
    assert found.identities(config().inputs.gpus) == (f"{H100} GPU-0", f"{H100} GPU-1")


def test_one_that_the_plan_does_not_know_is_judged_too() -> None:
    found = present(PAIR, CARDS, config(planned=(1,)))
    assert found == Present(PAIR)
    assert found.identities((f"{H100} GPU-1",)) == (f"{H100} GPU-0", f"{H100} GPU-1")


def test_the_settings_leave_one_out() -> None:
    found = present(PAIR, CARDS, config("GPU-1", planned=(1,)))
    assert found == Present(PAIR[1:], left_out=(f"{H100} GPU-0",))
    assert chosen(PAIR, config("GPU-1")) == [gpu(1)] and chosen(PAIR, config()) == list(PAIR)


def test_a_card_of_the_bus_that_nvml_does_not_list_is_missing() -> None:
    """It exits with 0 there: nvidia-smi of newer drivers leaves out a card that it can't open."""
    found = present(PAIR[:1], CARDS, config(planned=(0,)))
    (missing,) = found.missing
    assert (missing.gpu.uuid, missing.gpu.bus_id, missing.gpu.name) == (
        "GPU-1", "0000:02:00.0", H100)  # fmt: skip
    assert "the PCI bus shows it bound to nvidia, and NVML does not list it" in missing.found
    assert found.identities((f"{H100} GPU-0",)) == (f"{H100} GPU-0",), "the plan's own key"
    (nameless,) = present(
        PAIR[:1], (card(0), card(1, name="", uuid="")), config(planned=())
    ).missing
    assert (nameless.gpu.name, nameless.gpu.uuid, nameless.gpu.bus_id) == (
        "NVIDIA GPU", "", "0000:02:00.0")  # fmt: skip


def test_one_of_the_plan_that_is_nowhere_is_missing() -> None:
    found = present(PAIR[:1], CARDS[:1], config())
    (missing,) = found.missing
    assert (missing.gpu.identity, missing.found) == (f"{H100} GPU-1", "no such GPU")
    planned = (f"{H100} GPU-1", f"{H100} GPU-0")
    assert found.identities(planned) == planned, "the result is one of that very plan"
    other = present((gpu(2),), (), config())
    assert other.identities(config().inputs.gpus) == (
        f"{H100} GPU-0", f"{H100} GPU-1", f"{H100} GPU-2")  # fmt: skip


def test_a_chosen_one_that_is_gone_is_missing_once() -> None:
    chosen_1 = config("GPU-1", planned=(1,))
    for cards in ((card(0), card(1, uuid="")), CARDS, CARDS[:1]):
        found = present(PAIR[:1], cards, chosen_1)
        assert found.gpus == () and [one.gpu.uuid for one in found.missing] == ["GPU-1"]
        assert found.left_out[0] == f"{H100} GPU-0"


def test_a_sick_card_that_the_settings_leave_out_is_named_and_not_judged() -> None:
    found = present(PAIR[:1], CARDS, config("GPU-0", planned=(0,)))
    assert found == Present(PAIR[:1], left_out=(f"{H100} GPU-1",))
    unknown = (card(0), card(1, uuid="", name=""))
    found = present(PAIR[:1], unknown, config("GPU-0", planned=(0,)))
    assert found.missing == () and found.left_out == ("NVIDIA GPU at 0000:02:00.0",)


def test_one_that_nvml_counts_and_does_not_give_is_missing_once() -> None:
    lost = {1: "GPU is lost"}
    (missing,) = present(PAIR[:1], (), config(planned=(0,)), lost).missing
    assert "GPU is lost" in missing.found and missing.gpu.name == "GPU 1 of NVML"
    for known in (
        present(PAIR[:1], CARDS, config(planned=(0,)), lost),
        present(PAIR[:1], (), config(), lost),
    ):
        (missing,) = known.missing
        assert missing.gpu.uuid == "GPU-1" and "NVML, of GPU 1: GPU is lost" in missing.found
    named = present(PAIR[:1], (), config("GPU-0"), lost)
    assert (named.missing, named.left_out) == ((), ("GPU 1 of NVML",))
    assert present(PAIR[:1], CARDS, config("GPU-0"), lost).left_out == (f"{H100} GPU-1",)


def test_one_that_was_divided_since_the_plan_says_so() -> None:
    parts = tuple(replace(gpu(1, f"MIG-{name}"), index=1) for name in "ab")
    found = present((gpu(0), *parts), CARDS, config())
    (missing,) = found.missing
    assert missing.found == "it is divided into MIG-a, MIG-b now"
    assert "deploy.py" in missing.advice
    planned = present((gpu(0), *parts), CARDS, replace(config(), inputs=replace(
        config().inputs, gpus=tuple(one.identity for one in (gpu(0), *parts)))))  # fmt: skip
    assert planned.missing == ()


def test_one_that_the_module_was_told_to_leave_alone() -> None:
    (missing,) = present(PAIR[:1], (card(0), card(1, excluded=True)), config(planned=(0,))).missing
    assert "told to leave it alone" in missing.found and "NVreg_ExcludedGpus" in missing.advice


def test_an_instance_has_the_name_that_the_plan_gave_it() -> None:
    part = gpu(1, "MIG-a")
    planned = ("A100 MIG 1g.10gb MIG-a", f"{H100} GPU-0")
    other = replace(config(), inputs=replace(config().inputs, gpus=planned))
    found = present((gpu(0), part), (), other)
    assert found.missing == () and set(found.identities(planned)) == set(planned)
    assert present((gpu(0), part), (), other).identities(()) == (f"{H100} GPU-0", f"{H100} MIG-a")
    renamed = replace(gpu(0), name="H200")
    assert present((renamed,), (), config(planned=(0,))).identities((f"{H100} GPU-0",)) == (
        "H200 GPU-0",
    ), "of a whole GPU both ask for one name"
