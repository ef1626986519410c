"""The build job: llama-cpp-python from its source archive into a venv of its own.

A build gets a folder that was not there before, and build.json in it as the last thing: one that
fails, or is cut off, takes nothing away from those that are there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from llamafleet.onhost import compilercache, ninja, nvcc, wheel
from llamafleet.onhost.buildlog import BuildLog, refuse_unused, undeclared_options
from llamafleet.onhost.diagnose import OF_JOBS, causes
from llamafleet.onhost.environment import environment
from llamafleet.onhost.job import Job, JobFailed, beside
from llamafleet.onhost.pip import (
    AS_SOURCE,
    FROM_SOURCE,
    HASHES,
    WHEELS_ONLY,
    own_pip,
    pip_install,
    pip_run,
)
from llamafleet.onhost.product import (
    import_check,
    library_hashes,
    refuse_without_cuda,
    refuse_wrong_paths,
)
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import (
    BUILD,
    LIBRARY_PATH,
    NVCC,
    PARALLEL,
    WHEELS,
    BuildConfig,
    BuildProduct,
    CacheUse,
    Stamp,
    read_json,
    sync_folder,
    write_json,
)
from llamafleet.protocol.retry import retry_for

KEEP = ("CMakeCache.txt", ".ninja_log", "CMakeFiles/CMakeConfigureLog.yaml")
"""What stays of the CMake tree: evidence. The objects take hundreds of MB."""

INCOMPLETE = "incomplete"
"""In the folder of a build that is being made: the next one removes what was cut off."""


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
    last = _last_log(job.folder.parent)
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
        product = _take(job, config, tmp) if config.wheel else _build(job, config, tree, tmp, last)
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
    sync_file_system(prefix)
    write_json(prefix / BUILD, asdict(job.stamp(asdict(config.inputs))) | asdict(product))
    (prefix / INCOMPLETE).unlink()
    sync_folder(prefix)


def sync_file_system(folder: Path) -> None:
    """Have all of the file system that `folder` is on upon the disk. Raises OSError."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # os.sync would also wait for file systems that have nothing to do with it.
        if ctypes.CDLL(None, use_errno=True).syncfs(opened):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(opened)


def _build(job: Job, config: BuildConfig, tree: Path, tmp: Path, last: str) -> BuildProduct:
    """`last`: what ninja told of the build before."""
    prefix = Path(config.prefix)
    env = environment(config, variables(config), prefix, tmp)
    job.notes.extend(config.notes)
    job.phase("resolve", "venv")
    built_by = compiler_of(config, env)
    python, pip = _venv(job, config, env, tmp, AS_SOURCE)
    env, order = _longest_first(job, config, env, tree, tmp, last=last)
    cache = compilercache.Cache(job, config.cache, env, tmp) if config.cache else None
    wanted = _from_source(job, config, pip, tree, cache)
    # On cores that pip and CMake leave idle until the first units; pip itself would do it before.
    compiling = [python, "-I", "-m", "compileall", "-qq", str(prefix / "lib")]
    with beside(compiling, env=env, cwd=tmp, limit_s=60), cache or contextlib.nullcontext():
        log = _built(job, config, wanted, env | (cache.launchers if cache else {}))
    kept = _kept(job, config, env, pip) if config.keep_wheel else None
    job.phase("check", "import")
    libraries = library_hashes(prefix)
    refuse_wrong_paths(prefix, libraries, config.environment.get(LIBRARY_PATH, ""))
    imported = import_check(python, env, job.folder)
    if config.inputs.backend == "cuda":
        refuse_without_cuda(libraries, tree)
    job.finish()
    made = _ninja_log(tree)
    jobs = job.retry.jobs if job.retry else config.jobs
    _split_link(job, made, jobs)
    used = _cache_use(job, cache)
    return BuildProduct(
        wheel_bytes=log.wheel_bytes,
        wheel_sha256=log.wheel_sha256,
        libraries=libraries,
        units=log.steps,
        llama_cpp_python=imported.llama_cpp_python,
        system_info=imported.system_info,
        import_s=imported.import_s,
        nvcc=built_by,
        order=log.order or order,
        packing=ninja.packing(made, jobs),
        cache=used,
        wheel=kept.name if kept else "",
        needs=_needs(config, env) if kept else (),
    )


def _venv(
    job: Job, config: BuildConfig, env: dict[str, str], tmp: Path, *options: str
) -> tuple[str, list[str]]:
    """Make the environment with all that is pinned; its interpreter, and its `pip_install`."""
    prefix = Path(config.prefix)
    job.command([config.python, "-I", "-m", "venv", "--without-pip", str(prefix)], env=env)
    python = str(prefix / "bin" / "python")
    pip = pip_install(own_pip(config, tmp), python)
    requirements = job.folder / "requirements.txt"
    requirements.write_text(config.requirements, encoding="utf-8")
    pip_run(job, [*pip, *WHEELS_ONLY, *options, "-r", str(requirements)], env)
    return python, pip


def _from_source(
    job: Job, config: BuildConfig, pip: list[str], tree: Path, cache: compilercache.Cache | None
) -> list[str]:
    """The command that builds llama-cpp-python: through the cache, where it can be used."""
    # pip applies --config-settings of its command line to named requirements, not to those of a
    # file; and a hash can be given in a file only.
    llama = job.folder / "llama.txt"
    llama.write_text(
        f'{config.llama_requirement} --config-settings="build-dir={tree}"\n', encoding="utf-8"
    )
    into = _into(config, pip)
    cached = None
    if cache:
        cache.prepare([*pip, *WHEELS_ONLY])
        cached = _through(cache, pip, into, llama, tree)
    return cached or [*into, "-v", *FROM_SOURCE, "-r", str(llama)]


def _into(config: BuildConfig, pip: list[str]) -> list[str]:
    """Where pip puts what it builds: into the environment, or into a folder for other hosts."""
    if not config.keep_wheel:
        return pip
    made = ["wheel" if word == "install" else word for word in pip]
    return [*made, "--wheel-dir", str(Path(config.prefix) / WHEELS)]


def _kept(job: Job, config: BuildConfig, env: dict[str, str], pip: list[str]) -> Path:
    """Install the wheel that was built; it stays for other hosts."""
    built = wheel.only_wheel(Path(config.prefix) / WHEELS)
    _install(job, env, pip, built, wheel.sha256_of(built))
    return built


def _install(job: Job, env: dict[str, str], pip: list[str], file: Path, sha256: str) -> None:
    """One wheel of a folder, by its hash."""
    llama = job.folder / "wheel.txt"
    llama.write_text(f"{file} --hash=sha256:{sha256}\n", encoding="utf-8")
    pip_run(job, [*pip, "--no-index", "--no-deps", *WHEELS_ONLY, "-r", str(llama)], env)


def _needs(config: BuildConfig, env: Mapping[str, str]) -> tuple[str, ...]:
    """Instruction sets of its code, by the CPU; the plan has looked after a stated baseline."""
    native = config.inputs.cpu_flags is not None
    return wheel.native_sets(env.get("CXX", "c++"), env) if native else ()


def _take(job: Job, config: BuildConfig, tmp: Path) -> BuildProduct:
    """Install the wheel that another host built, and check it as one of our own."""
    shared, prefix = config.wheel, Path(config.prefix)
    assert shared is not None, "the plan says so"
    env = environment(config, variables(config), prefix, tmp)
    job.phase("resolve", f"wheel of {shared.host}")
    wheel.check_file(shared, Path(config.wheel_file))
    needs = _needs(config, env)
    wheel.refuse_other_cpu(shared, needs)
    python, pip = _venv(job, config, env, tmp)
    job.phase("install", f"wheel of {shared.host}")
    _install(job, env, pip, Path(config.wheel_file), shared.sha256)
    libraries = library_hashes(prefix)
    wheel.check_installed(shared, libraries)
    # What lies in the folders that they look into is this host's.
    refuse_wrong_paths(prefix, libraries, config.environment.get(LIBRARY_PATH, ""))
    job.phase("check", "import")
    imported = import_check(python, env, job.folder)
    job.finish()
    return BuildProduct(
        wheel_bytes=shared.size,
        wheel_sha256=shared.sha256,
        libraries=libraries,
        units=0,
        llama_cpp_python=imported.llama_cpp_python,
        system_info=imported.system_info,
        import_s=imported.import_s,
        nvcc=shared.nvcc,
        needs=shared.needs,
        shared_from=shared.host,
    )


def _longest_first(
    job: Job, config: BuildConfig, env: dict[str, str], tree: Path, tmp: Path, *, last: str
) -> tuple[dict[str, str], str]:
    """The environment in which the units are compiled the longest first, and else why not.

    Nothing of it is an input of the build: the same statements are carried out.
    """
    own = Path(config.prefix) / "bin" / "ninja"
    try:
        if not own.exists():
            raise ninja.Unordered(f"no {own}")
        if any(re.match("-DCMAKE_(MAKE_PROGRAM|GENERATOR)[:=]", one) for one in config.cmake_args):
            raise ninja.Unordered("cmake_options names the build program")
        tree.mkdir(exist_ok=True)
        wrapper = ninja.wrap(tmp / "order", own, tree, ninja.learned(last))
    except (ninja.Unordered, OSError) as reason:
        job.log(f"{ninja.SAYS}{ninja.AS_WRITTEN}{reason}")
        return env, f"{ninja.AS_WRITTEN}{reason}"
    arguments = [*config.cmake_args, f"-DCMAKE_MAKE_PROGRAM={wrapper}"]
    return env | {"CMAKE_ARGS": shlex.join(arguments)}, f"{ninja.AS_WRITTEN}nothing was said of it"


def _last_log(jobs: Path) -> str:
    """What ninja told of the last build on this host, whatever its fingerprint; "": of none.

    It is of use for the order alone: one that can't be read counts as none.
    """
    try:
        logs = [path for path in jobs.glob("*/cmake/.ninja_log") if path.is_file()]
        last = max(logs, key=lambda path: path.stat().st_mtime, default=None)
        return last.read_text(encoding="utf-8", errors="replace") if last else ""
    except OSError:
        return ""


def _through(
    cache: compilercache.Cache, pip: Sequence[str], into: Sequence[str], llama: Path, tree: Path
) -> list[str] | None:
    """The command that builds `into` through the cache; None: it can't be used."""
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
    unchecked = [word for word in into if word != HASHES]
    return [*unchecked, "-v", *FROM_SOURCE, f"--config-settings=build-dir={tree}", str(source)]


def _built(job: Job, config: BuildConfig, argv: Sequence[str], env: dict[str, str]) -> BuildLog:
    """Run the pip that builds, and once more where `retry_for` has a way; what its log said."""
    log = BuildLog()

    def run(env: dict[str, str]) -> None:
        pip_run(job, argv, env, on_line=lambda line: _follow(job, log, line, config.allowed_unused))

    try:
        run(env)
    except JobFailed:
        retry = retry_for(causes(job.read_log(), OF_JOBS), job.current_phase, config.jobs)
        if retry is None:
            raise
        job.again(retry)
        tree = job.folder / "cmake"
        shutil.rmtree(tree, ignore_errors=True)
        # The compiler cache has it by a link, which must not lead to nothing.
        tree.mkdir(exist_ok=True)
        log = BuildLog()
        run(env | {PARALLEL: str(retry.jobs)})
    return log


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
        PARALLEL: str(config.jobs),
    }


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


def _ninja_log(tree: Path) -> str:
    """What ninja told of this build; "": it was built with make."""
    try:
        return (tree / ".ninja_log").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _cache_use(job: Job, cache: compilercache.Cache | None) -> CacheUse | None:
    """What the cache did for this build, and a note of it; None: there is none."""
    if cache is None:
        return None
    used = cache.use()
    job.notes.append(compilercache.note(used))
    job.log(job.notes[-1])
    return used


def _split_link(job: Job, ninja_log: str, jobs: int) -> None:
    """Take the linking that nothing ran beside out of "compile", as a phase of its own."""
    if not ninja_log:
        return
    spent = ninja.link_seconds(ninja_log, jobs)
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
