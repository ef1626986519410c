"""Record a card for the fake NVML: `python record.py NVML.json > h200.json`.

NVML.json: {"system": {NAME: ANSWER}, "devices": [{"calls": [[NAME, ARGUMENTS, ANSWER], ...],
"fields": {NAME: {"id": ID, "ull": VALUE}}}, ...]}, an ANSWER being {"value": ...} or {"error":
CODE} as pynvml gave it. The first device is taken, its serial number and UUID are left out.
nvmlDeviceGetMemoryInfo_v2 was added by hand: with nothing in use all that the first form calls used
is what the driver reserves, as nvidia-smi said at the same moment (reserved 616 MiB, used 0).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PRIVATE = {"nvmlDeviceGetSerial", "nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo"}


def flat(value: Any) -> str:
    """As the fake's file has it: numbers between blanks, or text."""
    if isinstance(value, dict):
        return " ".join(flat(one) for one in value.values())
    if isinstance(value, list):
        return " ".join(flat(one) for one in value)
    return str(value)


def answer(told: dict[str, Any]) -> list[Any] | None:
    """[code, text]; None: it was not asked rightly."""
    if "value" in told:
        return [0, flat(told["value"])]
    return [told["error"], ""] if "error" in told else None


def card(device: dict[str, Any]) -> list[Any]:
    told = {
        "/".join((name, *map(str, arguments))): answer(said)
        for name, arguments, said in device["calls"]
        if name not in PRIVATE
    }
    told |= {
        f"field/{said['id']}": [0, str(said["ull"])] if "ull" in said else [said["rc"], ""]
        for said in device["fields"].values()
    }
    return [[key, said] for key, said in told.items() if said]


def main() -> None:
    data = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    system = [[name, answer(said)] for name, said in data["system"].items()]
    print("{")
    for name, rows in (("system", system), ("device", card(data["devices"][0]))):
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        print(f' "{name}": [\n  {lines}\n ]' + ("," if name == "system" else ""))
    print("}")


if __name__ == "__main__":
    main()
