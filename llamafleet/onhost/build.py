"""The build job: llama-cpp-python from its source archive into a venv of its own.

A build gets a folder that was not there before, and build.json in it as the last thing: one that
fails, or is cut off, takes nothing away from those that are there.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from llamafleet.onhost import compilercache, nvcc
from llamafleet.onhost.job import Job, JobFailed
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import (
    BUILD,
    NVCC,
    PATH,
    BuildConfig,
    BuildProduct,
    JobConfig,
    PipConfig,
    Stamp,
    read_json,
    sync_folder,
    write_json,
)

NINJA_STEP = re.compile(r"^\s*\[([0-9]{1,9})/([0-9]{1,9})\] (.*)")
WHEEL = re.compile(
    r"Created wheel for llama.cpp.python: .*\bsize=([0-9]{1,15}) sha256=([0-9a-f]{64})"
)
UNUSED = "Manually-specified variables were not used by the project"
PHASES = {
    "*** Configuring CMake": "configure",
    "*** Building project with": "compile",
    "*** Installing project into wheel": "install",
}
"""scikit-build-core's own lines (1.1.2), by the phase that begins there."""

KEEP = ("CMakeCache.txt", ".ninja_log", "CMakeFiles/CMakeConfigureLog.yaml")
"""What stays of the CMake tree: evidence. The objects take hundreds of MB."""

INCOMPLETE = "incomplete"
"""In the folder of a build that is being made: the next one removes what was cut off."""

READ_UNDECLARED = frozenset(
    f"{name}_BUILD_{what}" for name in ("GGML", "LLAMA") for what in ("COMMIT", "NUMBER")
)
"""Variables that the tree reads where they are set, and never declares."""

HASHES = "--require-hashes"
WHEELS_ONLY = ("--progress-bar=off", "--only-binary", ":all:")
NO_FILE = "No matching distribution found for "
NOT_FETCHED = re.compile(r"Could not fetch URL .* Error|HTTP error \d")
FROM_SOURCE = (
    "--progress-bar=off",
    "--no-build-isolation",
    "--no-binary",
    "llama-cpp-python",
    "--no-deps",
)

AnyPip = TypeVar("AnyPip", bound=PipConfig)

IMPORT_CHECK = """
import json, time
begun = time.perf_counter()
import llama_cpp
spent = time.perf_counter() - begun
print("\\n" + json.dumps({
    "llama_cpp_python": llama_cpp.__version__,
    "system_info": llama_cpp.llama_print_system_info().decode(),
    "import_s": round(spent, 3),
}))
"""


class BuildLog:
    """Reads pip's verbose output line by line and keeps what the stamp needs."""

    def __init__(self) -> None:
        self.phase = "resolve"
        self.step = 0
        self.steps = 0
        self.line = ""
        self.unused: list[str] = []
        """Options that CMake says it did not use."""
        self.wheel_bytes: int | None = None
        self.wheel_sha256: str | None = None
        self._in_unused = False

    def feed(self, line: str) -> None:
        self.line = line.strip()
        if self._in_unused and self.line:
            # The list ends where CMake speaks again: its status lines begin with two dashes.
            self._in_unused = bool(re.fullmatch(r"\w[\w.:-]*", self.line))
            if self._in_unused:
                self.unused.append(self.line)
        if UNUSED in line:
            self._in_unused = True
        elif found := NINJA_STEP.match(line):
            self.step, self.steps = int(found[1]), int(found[2])
            self.line = target(found[3])
        elif found := WHEEL.search(line):
            self.wheel_bytes, self.wheel_sha256 = int(found[1]), found[2]
        else:
            for marker, phase in PHASES.items():
                if self.line.startswith(marker):
                    self.phase = phase


def target(command: str) -> str:
    """What a ninja step makes: the argument of its last -o, else the command's first words."""
    words = command.split()
    outputs = [after for word, after in itertools.pairwise(words) if word == "-o"]
    return outputs[-1] if outputs else command[:120]


def link_seconds(ninja_log: str) -> float:
    """Seconds in which ninja linked and did nothing else, from the text of .ninja_log.

    A link that ran beside a compilation cost no time of its own, so only the time in which at
    least one library was being made and no other step ran is counted.
    """
    links: list[tuple[int, int]] = []
    others: list[tuple[int, int]] = []
    for line in ninja_log.splitlines():
        fields = line.split("\t")
        if len(fields) < 4 or not all(re.fullmatch(r"[0-9]{1,15}", one) for one in fields[:2]):
            continue
        span = (int(fields[0]), int(fields[1]))
        is_link = re.search(r"\.(?:a|so(?:\.\d+)*)$", fields[3])
        (links if is_link else others).append(span)
    return (_covered([*links, *others]) - _covered(others)) / 1000


def _covered(spans: Iterable[tuple[int, int]]) -> int:
    """Length of the union of the spans."""
    total, end = 0, 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def done(config: BuildConfig) -> bool:
    return proof(Path(config.prefix), config.key) is not None


def proof(prefix: Path, key: str) -> BuildProduct | None:
    """What build.json in `prefix` says of that build; None: it is not whole."""
    data = read_json(prefix / BUILD)
    try:
        stamp = decode(Stamp, data)
        return decode(BuildProduct, data) if stamp.ok and stamp.key == key else None
    except DecodeError:
        return None


def work(job: Job, config: BuildConfig) -> BuildProduct:
    """Make the venv, build into it, check what came out, and say so in it."""
    prefix = Path(config.prefix)
    tree, tmp = job.folder / "cmake", job.folder / "tmp"
    for leftover in (tree, tmp):
        if leftover.exists():
            shutil.rmtree(leftover)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    _remove_cut_off(job, prefix.parent)
    try:
        prefix.mkdir()
    except FileExistsError:
        raise JobFailed(
            f"{prefix}: found a folder; expected none, as no build is made over another; "
            "next: run the same command again"
        ) from None
    try:
        (prefix / INCOMPLETE).touch()
        tmp.mkdir()
        product = _build(job, config, tree, tmp)
        _prove(job, config, product)
        return product
    except BaseException:
        # Freed before the stamp is written: the disk may be full.
        shutil.rmtree(prefix, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        trim(tree)


def _remove_cut_off(job: Job, versions: Path) -> None:
    """Remove what builds left that were killed; the lock says that none of them runs."""
    for marker in versions.glob(f"*/{INCOMPLETE}"):
        if not marker.parent.is_symlink() and not (marker.parent / BUILD).exists():
            job.log(f"removed {marker.parent}: a build that was cut off")
            shutil.rmtree(marker.parent, ignore_errors=True)


def _prove(job: Job, config: BuildConfig, product: BuildProduct) -> None:
    """Write build.json once all else is on the disk."""
    prefix = Path(config.prefix)
    _sync_file_system(prefix)
    write_json(prefix / BUILD, asdict(job.stamp(asdict(config.inputs))) | asdict(product))
    (prefix / INCOMPLETE).unlink()
    sync_folder(prefix)


def _sync_file_system(folder: Path) -> None:
    """Have all of the file system that `folder` is on upon the disk. Raises OSError."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # os.sync would also wait for file systems that have nothing to do with it.
        if ctypes.CDLL(None, use_errno=True).syncfs(opened):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(opened)


def _build(job: Job, config: BuildConfig, tree: Path, tmp: Path) -> BuildProduct:
    prefix = Path(config.prefix)
    env = environment(config, variables(config), prefix, tmp)
    job.phase("resolve", "venv")
    built_by = compiler_of(config, env)
    job.command([config.python, "-I", "-m", "venv", "--without-pip", str(prefix)], env=env)
    python = str(prefix / "bin" / "python")
    pip = pip_install(own_pip(config, tmp), python)

    requirements = job.folder / "requirements.txt"
    requirements.write_text(config.requirements, encoding="utf-8")
    pip_run(job, [*pip, *WHEELS_ONLY, "-r", str(requirements)], env)

    # pip applies --config-settings of its command line to named requirements, not to those of a
    # file; and a hash can be given in a file only.
    llama = job.folder / "llama.txt"
    llama.write_text(
        f'{config.llama_requirement} --config-settings="build-dir={tree}"\n', encoding="utf-8"
    )
    wanted = [*pip, "-v", *FROM_SOURCE, "-r", str(llama)]
    cache = compilercache.Cache(job, config.cache, env, tmp) if config.cache else None
    if cache:
        cache.prepare([*pip, *WHEELS_ONLY])
        wanted = _through(cache, pip, llama, tree) or wanted
    log = BuildLog()
    with cache or contextlib.nullcontext():
        pip_run(
            job,
            wanted,
            env | (cache.launchers if cache else {}),
            on_line=lambda line: _follow(job, log, line, config.allowed_unused),
        )
    job.phase("check", "import")
    imported = import_check(python, env, job.folder)
    libraries = library_hashes(prefix)
    if config.inputs.backend == "cuda" and not any(
        path.endswith("/libggml-cuda.so") for path in libraries
    ):
        raise JobFailed(
            "built without CUDA: found no libggml-cuda.so in the wheel; expected one; "
            f"next: read the options in {tree / 'CMakeCache.txt'}"
        )
    job.finish()
    _split_link(job, tree)
    used = cache.use() if cache else None
    if used:
        job.notes.append(compilercache.note(used))
        job.log(job.notes[-1])
    return BuildProduct(
        wheel_bytes=log.wheel_bytes,
        wheel_sha256=log.wheel_sha256,
        libraries=libraries,
        units=log.steps,
        llama_cpp_python=imported.llama_cpp_python,
        system_info=imported.system_info,
        import_s=imported.import_s,
        nvcc=built_by,
        cache=used,
    )


def _through(
    cache: compilercache.Cache, pip: Sequence[str], llama: Path, tree: Path
) -> list[str] | None:
    """The command that builds through the cache; None: it can't be used."""
    if not cache.launchers:
        return None
    archives = cache.tmp / "archive"
    fetch = [{"install": "download"}.get(word, word) for word in pip]
    pip_run(cache.job, [*fetch, *FROM_SOURCE, "-d", str(archives), "-r", str(llama)], cache.env)
    (archive,) = archives.iterdir()
    places = cache.places(archive, tree)
    if places is None:
        return None
    source, tree = places
    cache.begin()
    # It was checked when it was fetched: a folder has no hash.
    unchecked = [word for word in pip if word != HASHES]
    return [*unchecked, "-v", *FROM_SOURCE, f"--config-settings=build-dir={tree}", str(source)]


def compiler_of(config: BuildConfig, env: Mapping[str, str]) -> str:
    """Build of the nvcc that will compile; "" for the CPU, and where it does not tell.

    Raises JobFailed where it is known to make wrong code for these GPUs.
    """
    path = env.get(NVCC)
    if path is None:
        return ""
    inputs = config.inputs
    version, build = nvcc.asked(path, env)
    wrong = nvcc.miscompiles(build, version or inputs.toolkit or "", inputs.compute_capabilities)
    if wrong:
        raise JobFailed(f"{path}: {wrong}; next: run the same command again, with another toolkit")
    return build


def variables(config: BuildConfig) -> dict[str, str]:
    """What the plan puts into the build's environment."""
    return config.environment | {
        "CMAKE_ARGS": shlex.join(config.cmake_args),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(config.jobs),
    }


def environment(
    config: JobConfig, own: Mapping[str, str], prefix: Path, tmp: Path
) -> dict[str, str]:
    """A job's environment: nothing of the caller's, whose settings would change what is built.

    `own` wins over what is common to all jobs. `tmp`: a folder for this job alone.
    """
    home = tmp / "home"
    home.mkdir(parents=True, exist_ok=True)
    common = {
        "PATH": PATH,
        # Settings in a home count as little as those in variables.
        "HOME": str(home),
        "TMPDIR": str(tmp),
        # Error lines are recognised by their English words.
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PYTHONNOUSERSITE": "1",
        # pip then reads no configuration at all: pip's own documentation, "Configuration".
        "PIP_CONFIG_FILE": os.devnull,
    }
    env = common | network(config) | dict(own)
    return env | {"PATH": f"{prefix / 'bin'}:{env['PATH']}"}


def network(config: JobConfig) -> dict[str, str]:
    """How a job's programs reach indexes and mirrors: proxies, certificates, credentials."""
    env: dict[str, str] = {}
    for name, value in config.proxies.items():
        # curl reads http_proxy in lower case alone, others all in upper case alone.
        env |= {name.lower(): value, name.upper(): value}
    if config.ca_bundle:
        names = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        env |= dict.fromkeys(names, config.ca_bundle)
    if config.netrc:
        env["NETRC"] = config.netrc
    if isinstance(config, PipConfig) and config.index_url and not config.find_links:
        # Not on a command line, which everybody can read.
        env["PIP_INDEX_URL"] = config.index_url
        if config.index_url.startswith("http:"):
            # pip passes such an index over in silence; hashes tell what it may send.
            env["PIP_TRUSTED_HOST"] = urlsplit(config.index_url).netloc
    return env


def own_pip(config: AnyPip, tmp: Path) -> AnyPip:
    """The same with a copy of pip of this job's own: the host's may be replaced while it runs."""
    return replace(config, pip=str(shutil.copy(config.pip, tmp / "pip.pyz")))


def pip_run(
    job: Job,
    argv: Sequence[str],
    env: dict[str, str],
    on_line: Callable[[str], object] = lambda line: None,
    keep: Callable[[str], bool] = lambda line: True,
) -> None:
    """Run a pip of `pip_install`; where it finds no file, also why the index gave none.

    Raises JobFailed, the cause then being in the log.
    """
    missing = False

    def follow(line: str) -> None:
        nonlocal missing
        missing = missing or NO_FILE in line
        on_line(line)

    try:
        job.command(argv, env=env, on_line=follow, keep=keep)
    except JobFailed:
        if missing:
            # pip says an HTTP status only here, among thousands of lines.
            with contextlib.suppress(JobFailed):
                job.command(
                    [*argv, "-vv", "--retries", "0", "--dry-run"], env=env, keep=NOT_FETCHED.search
                )
        raise


def pip_install(config: PipConfig, python: str) -> list[str]:
    """`pip install` with hashes required, from one folder alone or from its environment's index.

    To be run in the job's `environment`.
    """
    argv = [python, "-I", config.pip, "--disable-pip-version-check", "--no-input", "install"]
    argv += ["--no-cache-dir", HASHES]
    if config.find_links:
        argv += ["--no-index", "--find-links", config.find_links]
    return argv


def _follow(job: Job, log: BuildLog, line: str, allowed_unused: Sequence[str]) -> None:
    log.feed(line)
    if log.phase != job.current_phase:
        job.phase(log.phase, log.line)
        if log.phase == "compile":
            cache = job.folder / "cmake" / "CMakeCache.txt"
            undeclared = undeclared_options(cache.read_text(encoding="utf-8"))
            refuse_unused([*log.unused, *undeclared], allowed_unused)
    else:
        job.progress.step(log.step, log.steps, log.line)


def undeclared_options(cache: str) -> list[str]:
    """Options of llama.cpp's name space in CMakeCache.txt that nothing has declared.

    CMake does not report a mistyped GGML_* as unused: ggml reads every variable of that prefix to
    write its package file (measured with 0.3.36). An option that is declared has a type.
    """
    names = re.findall(r"^((?:GGML|LLAMA|LLAVA|MTMD)_\w+):UNINITIALIZED=", cache, re.MULTILINE)
    return [name for name in names if name not in READ_UNDECLARED]


def refuse_unused(unused: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise JobFailed where CMake did not use an option: a typing error builds something else."""
    wrong = [name for name in dict.fromkeys(unused) if name not in allowed]
    if wrong:
        raise JobFailed(
            f"{UNUSED}: found {', '.join(wrong)}; expected options that this version knows; "
            "next: correct cmake_options in the inventory"
        )


@dataclass(frozen=True)
class Imported:
    """What IMPORT_CHECK prints: version, system info and the seconds that the import took."""

    llama_cpp_python: str
    system_info: str
    import_s: float


def import_check(python: str, env: dict[str, str], folder: Path) -> Imported:
    """Import the package in a process of its own."""
    # Not in a source directory: its llama_cpp/ would be imported in place of the installed one.
    child = subprocess.run(
        [python, "-I", "-c", IMPORT_CHECK],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=env,
        cwd=folder,
        timeout=300,
        check=False,
    )
    if child.returncode:
        text = (child.stderr.strip() or child.stdout.strip()).splitlines()
        raise JobFailed(
            f"import llama_cpp ended with status {child.returncode}: {text[-1] if text else ''}"
        )
    return decode(Imported, json.loads(child.stdout.strip().splitlines()[-1]))


def library_hashes(prefix: Path) -> dict[str, str]:
    """sha256 of each library of the installed package, by its path below the venv."""
    folder = "lib/python*/site-packages/llama_cpp/lib"
    return {
        str(path.relative_to(prefix)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(prefix.glob(f"{folder}/lib*.so*"))
    }


def _split_link(job: Job, tree: Path) -> None:
    """Take the linking that nothing ran beside out of "compile", as a phase of its own."""
    try:
        spent = link_seconds((tree / ".ninja_log").read_text(encoding="utf-8"))
    except FileNotFoundError:  # built with make
        return
    order = list(job.phases)
    job.phases["compile"] = round(job.phases.get("compile", 0.0) - spent, 3)
    job.phases["link"] = round(spent, 3)
    order.insert(order.index("compile") + 1, "link")
    job.phases = {name: job.phases[name] for name in order}


def trim(tree: Path) -> None:
    """Remove all of a CMake tree but the files in KEEP."""
    kept = {name: (tree / name).read_bytes() for name in KEEP if (tree / name).is_file()}
    shutil.rmtree(tree, ignore_errors=True)
    for name, data in kept.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
