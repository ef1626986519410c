"""Recorded hosts: NAME.yaml says which recording it starts from and what was changed in it.

what: one line
source: where the changed lines come from
base: a recording's or another host's name
system: a name in systems.yaml, whose lines replace the base's
replace: text -> text, in the whole recording; each must occur
lines: key -> its lines in the recording, fields divided by " | "; [] removes the key
blocks: name -> the block's lines; null removes it
greeting: lines before the recording, as a login shell prints them
settings: as in an inventory
expect: what the plan must be on frozen tables; see test_hosts.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.reader import parse
from llamafleet.inventory import read_supplies, validate_fleet
from llamafleet.plans.make import explain, layout_for, make_plan
from llamafleet.plans.plan import Plan
from llamafleet.tables import overlaid
from tests.frozen_tables import FROZEN

FOLDER = Path(__file__).parent
FIELDS = {
    *("what", "source", "base", "system", "replace", "lines", "blocks", "greeting"),
    *("settings", "expect"),
}
KEYS = {
    *("kernel", "hostname", "arch", "uid", "user", "home", "glibc", "container", "package_manager"),
    *("cores", "cgroup_memory", "disk", "pci", "smi", "smi_query", "smi_banner", "module"),
    *("module_on_disk", "library", "compiler", "toolkit", "python", "cmake"),
    *("smi_details", "smi_list", "module_kind", "switches", "gpu_nodes"),
    *("systemctl", "module_signer", "nouveau", "kernel_module", "secure_boot", "uptime"),
    *("time", "module_file", "runfile", "vgpu_host", "driver_capabilities", "ostree", "board"),
    *("tegra", "no_sudo"),
}
BLOCKS = {
    "os-release",
    "cpuinfo",
    "meminfo",
    "smi_query",
    "smi_banner",
    "packages",
    "parts",
    "hold_record",
    "kernel_log",
    "smi_details",
    "smi_list",
    "driver_gpus",
    "fabric_manager",
    "dkms",
}

SYSTEMS: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "systems.yaml").read_text("utf-8"))
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "systems")


@dataclass(frozen=True)
class RecordedHost:
    name: str
    text: str
    """As the script prints it."""
    settings: dict[str, Any] = field(default_factory=dict)
    expect: dict[str, Any] = field(default_factory=dict)

    @property
    def snapshot(self) -> HostSnapshot:
        return parse(self.text.split("\n"))

    @property
    @overlaid(FROZEN)
    def plan(self) -> Plan:
        settings = validate_fleet({self.name: self.settings})[self.name]
        snapshot, supplies = self.snapshot, read_supplies({self.name: settings})[self.name]
        layout = layout_for(settings, snapshot)
        return make_plan(self.name, settings, snapshot, layout, supplies=supplies)

    @property
    def explanation(self) -> str:
        """The plan in words; a fingerprint is a hash of what stands there anyway."""
        plan = self.plan
        text = "\n".join(explain(plan)) + "\n"
        return text.replace(plan.build.fingerprint, "FINGERPRINT") if plan.build else text


def load(name: str) -> RecordedHost:
    described = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    return RecordedHost(
        name, _text(name), described.get("settings", {}), described.get("expect", {})
    )


def _text(name: str) -> str:
    path = FOLDER / f"{name}.yaml"
    described = yaml.safe_load(path.read_text("utf-8"))
    unknown = set(described) - FIELDS
    assert not unknown, f"{path.name}: unknown {unknown}"
    assert described["what"] and described["source"], path.name
    base = described["base"]
    recording = FOLDER / base
    text = recording.read_text("utf-8") if recording.suffix == ".snapshot" else _text(base)
    if "system" in described:
        text = change(text, SYSTEMS[described["system"]])
    text = change(text, {"replace": described.get("replace", {})})
    for kind in ("lines", "blocks"):
        for key, content in described.get(kind, {}).items():
            changed = change(text, {kind: {key: content}})
            assert changed != text, f"{path.name}: {kind}: {key} is so in its base already"
            text = changed
    return change(text, {"greeting": described.get("greeting", [])})


def change(text: str, changes: dict[str, Any]) -> str:
    """The recording with the changes made, in the order replace, lines, blocks, greeting."""
    for old, new in changes.get("replace", {}).items():
        assert old in text, f"replace: {old!r} does not occur"
        text = text.replace(old, new)
    for key, values in changes.get("lines", {}).items():
        assert key in KEYS, f"lines: {key} is no key of a recording"
        rows = [f"{key}={value.replace(' | ', chr(9))}" for value in values]
        text = _put(text, [row for row in _items(text) if row[0].startswith(f"{key}=")], rows)
    for name, content in changes.get("blocks", {}).items():
        assert name in BLOCKS, f"blocks: {name} is no block of a recording"
        new = [] if content is None else [f"@begin {name}", *(f" {c}" for c in content), "@end"]
        text = _put(text, [row for row in _items(text) if row[0] == f"@begin {name}"], new)
    return "".join(f"{line}\n" for line in changes.get("greeting", [])) + text


def _items(text: str) -> list[list[str]]:
    """The recording's parts: a tagged line, or a block with all its lines."""
    items: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if inside:
            items[-1].append(line)
        else:
            items.append([line])
        inside = line.startswith("@begin ") or (inside and line != "@end")
    return items


def _put(text: str, old: list[list[str]], new: list[str]) -> str:
    """`new` in place of the first of `old`; where there is none, before the last two lines."""
    items = _items(text)
    place = items.index(old[0]) if old else len(items) - 2
    kept_before = [item for item in items[:place] if item not in old]
    kept_after = [item for item in items[place:] if item not in old]
    lines = [line for item in [*kept_before, new, *kept_after] for line in item]
    return "\n".join(lines) + "\n"
