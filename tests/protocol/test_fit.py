"""The accounting against what llama.cpp itself counted, recorded by tests/bench/fit.py."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.protocol.fit import (
    MEASURED,
    MIB,
    SMALLEST_CTX,
    Gpu,
    Need,
    Room,
    Shortage,
    Use,
    by_header,
    fits,
    most_context,
    most_layers,
    needs,
    over,
    placed,
    smaller,
    usable,
)
from llamafleet.protocol.offer import Wish, offer, wished
from llamafleet.protocol.serve import Placement
from llamafleet.protocol.shape import Shape
from tests.fit import ggufs

ROWS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data/counted.json").read_text(encoding="utf-8")
)
BAR = 0.05
ALL = Placement(-1, 8192)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shape]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: shape_of(modelfile.read(ggufs.write(folder / f"{name}.gguf", model)))
        for name, model in ggufs.MODELS.items()
    }


@cache
def rows(name: str) -> list[dict[str, Any]]:
    return [row for row in ROWS if row["name"] == name]


def room(*free_mib: int, reserve: int = 1024, **use: Any) -> Room:
    return Room(tuple(map(Gpu, free_mib)), reserve, Use(**use))


def counted(shape: Shape, row: dict[str, Any]) -> tuple[Need, ...]:
    placement = Placement(row["n_gpu_layers"], row["n_ctx"], row["kv"], row.get("n_batch", 512))
    use = {key: row[key] for key in ("parallel", "swa_full") if key in row}
    return needs(shape, placement, room(*row["machine"], **use))


@pytest.mark.parametrize("name", ggufs.MODELS)
def test_nothing_is_counted_too_low(name: str, shapes: dict[str, Shape]) -> None:
    assert len(rows(name)) > 10
    for row in rows(name):
        for need, (weights, context, compute) in zip(
            counted(shapes[name], row), row["mib"], strict=True
        ):
            assert weights <= need.weights / MIB < weights + 2, row
            assert context <= need.context / MIB < context + 2, row
            assert compute <= need.compute / MIB, row


@pytest.mark.parametrize("name", ggufs.MODELS)
def test_a_model_that_is_whole_on_one_gpu_is_counted_to_five_in_a_hundred(
    name: str, shapes: dict[str, Shape]
) -> None:
    whole = [row for row in rows(name) if len(row["machine"]) == 1 and "n_batch" not in row]
    assert {(row["n_ctx"], row["kv"]) for row in whole} == {
        (ctx, kv) for ctx in (4096, 16384, 65536) for kv in ("f16", "q8_0")
    }
    for row in whole:
        (need,) = counted(shapes[name], row)
        said = sum(row["mib"][0])
        assert need.weights + need.context + need.compute < (1 + BAR) * said * MIB, row


def test_what_was_measured_is_named() -> None:
    assert {model.arch for model in ggufs.MODELS.values()} == MEASURED
    assert {row["name"] for row in ROWS} == set(ggufs.MODELS)


def test_a_model_that_is_to_stay_on_the_cpu_stays_there(shapes: dict[str, Shape]) -> None:
    zero = replace(ALL, n_gpu_layers=0)
    assert placed(shapes["dense"], zero, room(4000)) == zero
    assert isinstance(placed(shapes["dense"], zero, room(1100)), Shortage)


def test_a_small_model_is_small(shapes: dict[str, Shape]) -> None:
    """A parser that counted each query's key and all logits said 13.8 GiB of such a one."""
    (need,) = needs(shapes["small"], Placement(-1, 2048), room(24000))
    assert 900 < (need.weights + need.context + need.compute) / MIB < 1100


def test_more_layers_than_there_are_are_all(shapes: dict[str, Shape]) -> None:
    moe = shapes["moe"]
    assert moe.layers == 28
    every = needs(moe, replace(ALL, n_gpu_layers=29), room(24000))
    for asked in (50, 60, -1):
        assert needs(moe, replace(ALL, n_gpu_layers=asked), room(24000)) == every
    several = room(20000, 20000)
    clamped = needs(moe, replace(ALL, n_gpu_layers=29), several)
    assert needs(moe, replace(ALL, n_gpu_layers=50), several) == clamped


@pytest.mark.parametrize(
    ("name", "kv", "compute"),
    [
        ("dense", "f16", 540.31),
        ("dense", "q8_0", 607.81),
        ("moe", "q8_0", 473.86),
        ("swa", "f16", 1059.76),
        ("gpt-oss", "f16", 714.74),
        ("mha", "q8_0", 449.08),
    ],
)
def test_a_gpu_helps_a_model_that_is_all_on_the_cpu(
    name: str, kv: Any, compute: float, shapes: dict[str, Shape]
) -> None:
    """Counted by llama.cpp, as the rows of counted.json are."""
    (need,) = needs(shapes[name], Placement(0, 16384, kv), room(24000))
    assert (need.weights, need.context) == (0, 0)
    assert compute < need.compute / MIB < 2.5 * compute


def test_cuda_has_most_of_the_memory() -> None:
    """An RTX 4090 of 24564 MiB has had 24080 to 24210 for CUDA."""
    assert 24000 < usable(24564) < 24080


def test_layers_are_shared_out_by_free_memory(shapes: dict[str, Shape]) -> None:
    first, second = needs(shapes["dense"], ALL, room(30000, 10000))
    assert first.weights > 2 * second.weights > 0
    assert needs(shapes["dense"], ALL, room(30000, 0))[1].weights == 0


def test_as_many_layers_as_fit(shapes: dict[str, Shape]) -> None:
    place, there = shapes["dense"], room(4000)
    found = placed(place, ALL, there)
    assert isinstance(found, Placement) and 0 < found.n_gpu_layers < 33
    count = by_header(place, there)
    assert fits(count, found, there)
    assert not fits(count, replace(found, n_gpu_layers=found.n_gpu_layers + 1), there)
    assert placed(place, ALL, room(24000)) == replace(ALL, n_gpu_layers=33)


def test_what_is_missing_is_told_with_the_numbers(shapes: dict[str, Shape]) -> None:
    short = placed(shapes["moe"], ALL, room(1500))
    assert isinstance(short, Shortage)
    assert "1 layers, n_ctx 8192, f16" in short.found and "MiB more than it has" in short.found
    assert short.expected == "at most 476 MiB (1500 free, 1024 in reserve)"


def test_the_longest_context_that_fits(shapes: dict[str, Shape]) -> None:
    shape, there = shapes["dense"], room(12000)
    count = by_header(shape, there)
    found = most_context(count, Placement(33, 131072), there)
    assert found is not None and found.n_ctx % 256 == 0
    assert fits(count, found, there)
    assert not fits(count, replace(found, n_ctx=found.n_ctx + 256), there)
    assert most_context(count, Placement(33, 1000), there) == Placement(33, 1000)
    assert most_context(by_header(shape, room(4000)), Placement(33, 131072), room(4000)) is None
    assert most_layers(count, Placement(33, 4096), there) == Placement(33, 4096)


def test_a_model_that_only_llama_cpp_can_count_is_refused(shapes: dict[str, Shape]) -> None:
    short = placed(replace(shapes["dense"], unknown="it keeps a state: ssm.x"), ALL, room(24000))
    assert isinstance(short, Shortage) and "ssm.x" in short.found and "--host" in short.next


def test_a_head_without_flash_attention_is_counted_with_its_scores(
    shapes: dict[str, Shape],
) -> None:
    odd = replace(shapes["dense"], head=100, head_value=100)
    (with_it,), (without,) = (needs(one, ALL, room(24000)) for one in (shapes["dense"], odd))
    assert without.compute - with_it.compute > 200 * MIB
    (asked,) = needs(shapes["dense"], ALL, room(24000, flash_attention=False))
    assert asked.compute == without.compute


def test_smaller_ones_come_in_the_order_of_what_they_cost(shapes: dict[str, Shape]) -> None:
    steps = list(smaller(shapes["dense"], Placement(-1, 8192)))
    assert steps[0] == Placement(-1, 8192, n_batch=128)
    assert steps[1] == Placement(-1, 8192, "q8_0")
    assert steps[-1].n_gpu_layers == 1
    assert all(step.n_ctx >= 2048 and step.kv_type != "q4_0" for step in steps)
    least = list(smaller(shapes["dense"], Placement(1, SMALLEST_CTX, "q4_0", 128)))
    assert least == []


def test_an_offer_gives_up_what_was_not_named(shapes: dict[str, Shape]) -> None:
    def of(wish: Wish, free: int) -> Any:
        there = room(free)
        shape = shapes["dense"]
        return offer(wished(shape, wish, there), wish, there, by_header(shape, there))

    fitting = of(Wish(), 40000)
    assert fitting.best == fitting.asked and not fitting.others
    assert fitting.asked.placement == Placement(33, 131072)
    coarser = of(Wish(), 20000)
    assert coarser.asked.missing_mib > 0 >= coarser.best.missing_mib
    assert coarser.best.placement == Placement(33, 131072, "q8_0")
    named = of(Wish(n_ctx=131072, kv_type="f16"), 20000)
    assert named.best.placement.n_ctx == 131072 and named.best.placement.n_gpu_layers < 33
    assert named.others[0].placement.n_gpu_layers == 33
    assert of(Wish(), 1600).best is None


def test_each_request_has_a_context_of_its_own(shapes: dict[str, Shape]) -> None:
    there = room(24000, parallel=4)
    asked = wished(shapes["dense"], Wish(n_ctx=4096), there)
    assert asked.n_ctx == 4 * 4096
    needed = needs(shapes["dense"], asked, there)
    assert needed[0].context == needs(shapes["dense"], Placement(-1, 16384), room(24000))[0].context
    assert over(needed, there)[0] < 0


PARALLEL = Shape(
    name="", architecture="command-r", context=131072, weights=(122699776,) * 8, output=295518208,
    on_cpu=0, largest=33030144, keys=(1024,) * 8, values=(1024,) * 8, embd=4096, queries=4096,
    feed=14336, experts=0, vocab=128256, heads=32, head=128, head_value=128, half=False,
)  # fmt: skip
"""Of a file of 8 layers, as ggufs.py makes them."""
EXPERTS = replace(
    PARALLEL, architecture="phimoe", weights=(301932672,) * 8, output=175654400, keys=(2048,) * 8,
    values=(2048,) * 8, embd=2048, queries=2048, feed=5632, experts=4, vocab=151936, heads=16,
)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "kv", "compute"),
    [
        (PARALLEL, "q8_0", 436),
        (replace(PARALLEL, architecture="falcon", output=295534592), "q8_0", 372),
        (replace(PARALLEL, architecture="stablelm", output=295534592), "q8_0", 436),
        (EXPERTS, "f16", 368),
        (replace(EXPERTS, architecture="llama4", feed=7040, output=175038464), "q8_0", 656),
    ],
)
def test_others_than_those_compared_are_not_under_estimated(
    shape: Shape, kv: Any, compute: int
) -> None:
    """What llama.cpp of 0.3.36 said of them, with 65536 tokens and all layers on one GPU."""
    (need,) = needs(shape, Placement(-1, 65536, kv), room(200_000))
    assert need.compute >= compute * MIB
    assert need.weights + need.context + need.compute < 1.06 * (
        need.weights + need.context + compute * MIB
    )


def test_no_coarser_context_without_flash_attention() -> None:
    """llama.cpp refuses it: a proposal of it would never load."""
    use = Use(flash_attention=False)
    tried = list(smaller(PARALLEL, Placement(-1, 8192), use))
    assert tried and {one.kv_type for one in tried} == {"f16"}


USED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data/used.json").read_text(encoding="utf-8")
)
"""MiB by NVML of two H200, each context filled to its end: tests/gpu/fit.py."""
IN_PART = 0.10
"""Of a GPU that helps out with the CPU's layers: docs/fit.md."""


@pytest.mark.parametrize("name", sorted({row["name"] for row in USED}))
def test_what_a_real_gpu_had_is_met_from_above(name: str, shapes: dict[str, Shape]) -> None:
    for row in (row for row in USED if row["name"] == name):
        placement = Placement(row["n_gpu_layers"], row["n_ctx"], row["kv"])
        need = needs(shapes[name], placement, room(*(142_629,) * row["gpus"]))[row["gpu"]]
        helps = row["n_gpu_layers"] > 0 and row["gpu"] == 0
        error = need.total_mib / row["used_mib"] - 1
        assert 0 <= error <= (IN_PART if helps else BAR), (row, need.total_mib)
    assert len(USED) == 34
