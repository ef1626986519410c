"""Asks an interpreter about itself; its text is run by that interpreter, of Python 3.8 or newer.

`describe`: the environment, to be run isolated (-I). `look`: which llama_cpp it would import, and
`try`: what comes of that, both started as the user starts it. The answer is the last line, JSON
behind ANSWER. The standard library alone: the interpreter is not this project's.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import re
import site
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

ANSWER = "llamafleet-answer "
MODULE, PACKAGE = "llama_cpp", "llama-cpp-python"
MOST = 20


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def text_of(path: Path | str) -> str:
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return file.read(1 << 22)
    except OSError:
        return ""


def user_site() -> str:
    """ "": this interpreter does not look there, started as its user does."""
    # Isolated it always says that it does not; a virtual environment says it in its pyvenv.cfg.
    config = text_of(Path(sys.prefix, "pyvenv.cfg"))
    shared = re.search(r"include-system-site-packages\s*=\s*true", config, re.IGNORECASE)
    if sys.prefix != sys.base_prefix and not shared:
        return ""
    return site.getusersitepackages() or ""


def describe() -> dict[str, Any]:
    paths = sysconfig.get_paths()
    own = sys.prefix != sys.base_prefix
    managed = Path(paths["stdlib"], "EXTERNALLY-MANAGED")
    meta = Path(sys.prefix, "conda-meta")
    packages = sorted(map(str, meta.glob(f"{PACKAGE}-*.json")))
    uv = re.search(r"^uv\s*=\s*(\S+)", text_of(Path(sys.prefix, "pyvenv.cfg")), re.M)
    places = [*sys.path, user_site()]
    found = [told for told in map(distribution, metadata.distributions(path=places)) if told]
    return {
        "executable": sys.executable,
        "version": ".".join(map(str, sys.version_info[:3])),
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "base_executable": getattr(sys, "_base_executable", "") or sys.executable,
        "site": paths["platlib"],
        "user_site": user_site(),
        "owner": Path(sys.prefix).stat().st_uid,
        "externally_managed": str(managed) if managed.exists() and not own else "",
        "conda": meta.is_dir(),
        "conda_package": packages[0] if packages else "",
        "uv": uv.group(1) if uv else "",
        "editable": next(filter(None, map(editable, metadata.distributions(path=places))), ""),
        "pip": next((one["version"] for one in found if one["name"] == "pip"), ""),
        "distributions": found,
    }


def distribution(one: metadata.Distribution) -> dict[str, str] | None:
    """None: a folder that is left of one, without a name."""
    try:
        name, version = one.metadata["Name"], one.version
        record = one.read_text("RECORD") or one.read_text("METADATA") or ""
    except Exception:
        return None
    if not name:
        return None
    return {
        "name": normal(name),
        "version": version or "",
        "place": str(one.locate_file("")).rstrip("/"),
        "sha256": hashlib.sha256(record.encode("utf-8", "replace")).hexdigest(),
    }


def editable(one: metadata.Distribution) -> str:
    """Folder of sources that are imported from where they lie (direct_url.json, PEP 610)."""
    try:
        told = json.loads(one.read_text("direct_url.json") or "{}")
        if normal(one.metadata["Name"]) == PACKAGE and told["dir_info"]["editable"] is True:
            return url2pathname(urlsplit(told["url"]).path).rstrip("/")
    except Exception:
        return ""
    return ""


def look() -> dict[str, Any]:
    copies = []
    for entry in dict.fromkeys(sys.path):
        folder = Path(entry or ".").absolute() / MODULE
        if (folder / "__init__.py").is_file():
            copies.append(copy(folder, entry))
    try:
        spec = importlib.util.find_spec(MODULE)
    except Exception:
        spec = None
    found = str(Path(spec.origin).absolute().parent) if spec and spec.origin else ""
    if found and found not in [one["folder"] for one in copies]:
        # By a hook, as an editable installation's.
        copies.insert(0, copy(Path(found), found))
    return {"copies": copies, "found": found, "folder": str(Path.cwd())}


def put_by(entry: str) -> str:
    if entry in ("", str(Path.cwd())):
        return "current folder"
    if entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        return "PYTHONPATH"
    if entry == user_site():
        return "user site"
    paths = sysconfig.get_paths()
    own = (paths["platlib"], paths["purelib"], *site.getsitepackages())
    return "environment" if entry in own else "other"


def copy(folder: Path, entry: str) -> dict[str, Any]:
    libraries = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("lib*.so*"))
        if path.is_file()
    }
    told = {"folder": str(folder), "by": put_by(entry), "libraries": libraries}
    beside = metadata.distributions(path=[str(folder.parent)])
    for one in beside:
        name = one.metadata["Name"]
        if name and normal(name) == PACKAGE:
            told.update(of_distribution(one))
            break
    return told


def of_distribution(one: metadata.Distribution) -> dict[str, Any]:
    wheel = one.read_text("WHEEL") or ""
    missing = []
    for row in csv.reader((one.read_text("RECORD") or "").splitlines()):
        # Compiled files may be removed by anybody, and are made again.
        if row and not row[0].endswith(".pyc") and not Path(str(one.locate_file(row[0]))).exists():
            missing.append(row[0])

    def line(key: str) -> str:
        found = re.search(rf"^{key}: (.*)", wheel, re.M)
        return found.group(1).strip() if found else ""

    return {
        "version": one.version or "",
        "tag": line("Tag"),
        "generator": line("Generator"),
        "installer": (one.read_text("INSTALLER") or "").strip(),
        "missing": missing[:MOST],
        "requires": needed(one),
    }


def needed(one: metadata.Distribution) -> list[str]:
    """By its own metadata, and by that of what it needs where that is there."""
    names: list[str] = []
    asked = [one]
    while asked:
        for need in asked.pop(0).requires or ():
            name = normal(re.split(r"[^\w.-]", need.strip())[0])
            if "extra ==" in need or name in names:
                continue
            names.append(name)
            try:
                asked.append(metadata.distribution(name))
            except metadata.PackageNotFoundError:
                continue
    return names


def attempt() -> dict[str, Any]:
    told = {"imported": False, "version": "", "error": "", "offload": False}
    told.update({"system_info": "", "libraries": []})
    try:
        # By name: llama-cpp-python is not there where this is checked.
        module: Any = importlib.import_module(MODULE)
        told["imported"] = True
        told["version"] = str(getattr(module, "__version__", ""))
        told["offload"] = bool(module.llama_supports_gpu_offload())
        told["system_info"] = module.llama_print_system_info().decode("utf-8", "replace")
    except BaseException as error:
        words = str(error).strip().splitlines()
        told["error"] = type(error).__name__ + (": " + words[-1] if words else "")
    names = set(re.findall(r"(/\S*/lib(?:ggml|llama|cud|cublas)\S*)", text_of("/proc/self/maps")))
    told["libraries"] = sorted(names)
    return told


if __name__ == "__main__":
    told = {"describe": describe, "look": look, "try": attempt}[sys.argv[1]]()
    print("\n" + ANSWER + json.dumps(told))
