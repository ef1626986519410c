"""A source archive that builds within a second: one C file by gcc, with a build backend of its own.

It says on standard output what scikit-build-core and ninja would say, which is what the job reads.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

from tests.onhost.wheels import hash_option, write_wheel

NAME, VERSION = "llama-cpp-python", "0.3.36"

BACKEND = """
import os, subprocess, time, zipfile
from pathlib import Path

SOURCE = Path(__file__).parent


def say(line):
    print(line, flush=True)
    time.sleep(0.05)


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    info = Path(metadata_directory, "llama_cpp_python-@VERSION@.dist-info")
    info.mkdir()
    (info / "METADATA").write_bytes((SOURCE / "PKG-INFO").read_bytes())
    return info.name


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    tree = Path(config_settings["build-dir"])
    say("*** Configuring CMake...")
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "CMakeCache.txt").write_text("CMAKE_BUILD_TYPE:STRING=Release\\n")
    say("*** Building project with Ninja...")
    log = ["# ninja log v5"]
    for number in (1, 2, 3):
        made = tree / f"{number}.o"
        say(f"[{number}/4] cc -o {made.name}")
        command = ["cc", "-fPIC", f"-DNUMBER={number}", "-c", SOURCE / "one.c", "-o", made]
        subprocess.run(command, check=True)
        (tree / f"ballast{number}").write_bytes(os.urandom(1 << 20))
        log.append(f"{number}\\t{number + 1}\\t0\\t{made.name}\\t0")
    say("[4/4] cc -o libllama.so")
    library = tree / "libllama.so"
    objects = [tree / f"{number}.o" for number in (1, 2, 3)]
    subprocess.run(["cc", "-shared", *objects, "-o", library], check=True)
    (tree / ".ninja_log").write_text("\\n".join([*log, "4\\t5\\t0\\tlibllama.so\\t0", ""]))
    say("*** Installing project into wheel...")
    name = "llama_cpp_python-@VERSION@"
    info = f"{name}.dist-info"
    wheel = Path(wheel_directory, f"{name}-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "w") as file:
        for module in sorted(SOURCE.glob("llama_cpp/*.py")):
            file.write(module, f"llama_cpp/{module.name}")
        file.write(library, "llama_cpp/lib/libllama.so")
        file.writestr("llama_cpp/ballast", os.urandom(2 << 20))
        tag = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        file.writestr(f"{info}/WHEEL", tag)
        file.write(SOURCE / "PKG-INFO", f"{info}/METADATA")
        file.writestr(f"{info}/RECORD", "")
    return wheel.name
""".replace("@VERSION@", VERSION)

FILES = {
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\n'
    'backend-path = ["."]\n',
    "backend.py": BACKEND,
    "one.c": """
#define NAMED(number) name_##number
#define NAME(number) NAMED(number)
const char *NAME(NUMBER)(void) { return "CPU : NEON = 1 | "; }
""",
    "llama_cpp/__init__.py": """
import ctypes
from pathlib import Path
_lib = ctypes.CDLL(str(Path(__file__).parent / "lib" / "libllama.so"))
_lib.name_1.restype = ctypes.c_char_p
__version__ = "0.3.36"
def llama_print_system_info():
    return _lib.name_1()
""",
    "PKG-INFO": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n",
}


def write_archive(folder: Path, files: dict[str, str]) -> Path:
    """The source archive of these files."""
    path = folder / f"llama_cpp_python-{VERSION}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"llama_cpp_python-{VERSION}/{name}")
            entry.mtime = 1_700_000_000  # zip files know no time before 1980
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def write_index(folder: Path) -> dict[str, str]:
    """Archive and a wheel that the build needs, in `folder`; what a build is told of them."""
    folder.mkdir(parents=True)
    archive = write_archive(folder, FILES)
    need = write_wheel(folder, "needed", "1.0", {"needed/__init__.py": ""})
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    return {
        "requirements": f"needed==1.0 {hash_option(need)}\n",
        "llama_requirement": f"{NAME}=={VERSION} --hash=sha256:{sha256}",
        "find_links": str(folder),
    }
