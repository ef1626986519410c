"""The memory of GPUs by name."""

from __future__ import annotations

import pytest

from llamafleet.tables.gpu_memory import memory, memory_named
from llamafleet.tables.gpus import gpus


def test_every_row_is_of_a_known_gpu_and_none_is_twice() -> None:
    names = [row.name for row in memory()]
    assert set(names) <= {row.name for row in gpus()}
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("rtx4090", ["GeForce RTX 4090"]),
        ("NVIDIA GeForce RTX 4090", ["GeForce RTX 4090"]),
        ("4070", ["GeForce RTX 4070"]),
        ("RTX 3080", ["GeForce RTX 3080"]),
        ("Tesla T4", ["T4"]),
        ("l4", ["L4"]),
        ("h100-pcie", ["H100 PCIe 80GB"]),
        ("a100", ["A100 40GB", "A100 80GB SXM", "A100 80GB PCIe"]),
        ("rtx9999", []),
        ("", []),
        ("-", []),
    ],
)
def test_names_as_people_write_them(text: str, names: list[str]) -> None:
    assert [row.name for row in memory_named(text)] == names
