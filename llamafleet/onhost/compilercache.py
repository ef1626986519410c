"""The compiler cache of a build: tried before it is trusted, and never why a build fails.

ccache, for it takes nvcc as one command: sccache splits nvcc's dry run, and has broken with the
words of new releases of it (mozilla/sccache#2722, #2862).
"""

from __future__ import annotations

import contextlib
import netrc
import os
import re
import shlex
import shutil
import stat
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

from llamafleet.onhost import compilerkey
from llamafleet.onhost.job import Job, JobFailed, end_session
from llamafleet.protocol.job import NVCC, CacheConfig, CacheUse
from llamafleet.protocol.redact import redacted

TRIAL_S = 120
"""For one small file: minutes are for a host that swaps."""
CONNECT_MS, ANSWER_MS = 500, 1000
"""For the shared cache, at each file: one that hangs costs no file more than this."""

LAUNCHER = """\
#!/bin/sh
# Without a file of dependencies the cache looks at what nvcc -E prints, which is one of its passes.
case " $* " in
*" -MD "*) ;;
*) exec "$@" ;;
esac
CCACHE_CONFIGPATH={settings} {program} "$@" && exit
"$@" || exit
{{ echo "$*" >>{failed}; }} 2>/dev/null
exit 0
"""
"""Compiles a file through the cache; what fails there is compiled without it."""

TRIAL = "int llamafleet_trial_{number} = {number};\n"

HITS = ("direct_cache_hit", "preprocessed_cache_hit")
MISS, KEPT, NOT_KEPT = "cache_miss", "local_storage_write", "not kept"
NO_ANSWER = ("remote_storage_error", "remote_storage_timeout")
"""Words of ccache's log of results: one a line, several a file."""


def counted(results: str) -> Counter[str]:
    """How many files each word of ccache's log of results was said of."""
    counts: Counter[str] = Counter()
    for part in re.split(r"^# .*$", results, flags=re.MULTILINE):
        words = {*part.split()}
        counts.update(words)
        counts[NOT_KEPT] += {MISS} <= words and KEPT not in words
    return counts


class Unusable(Exception):
    """Why the build goes on without it."""


class Cache:
    """The cache as one build uses it. Where it can't be used `launchers` is empty."""

    def __init__(self, job: Job, config: CacheConfig, env: Mapping[str, str], tmp: Path) -> None:
        self.job, self.config, self.env = job, config, dict(env)
        self.tmp = tmp / "cache"
        self.folder = Path(config.folder)
        self.program = self.tmp / "tool" / "bin" / "ccache"
        self.failed, self.results = self.tmp / "failed", self.tmp / "results"
        self.launchers: dict[str, str] = {}
        """By the variable that CMake reads: cmake-env-variables(7)."""
        self.tool = ""
        self.problems: list[str] = []

    def prepare(self, pip: Sequence[str]) -> None:
        """Get it, try it. `pip`: that installs wheels with hashes. Never raises but Stopped."""
        try:
            self._install(pip)
            _own_folder(self.folder)
            _own_folder(self.folder / "ccache")
            kinds = {"host": compilerkey.host_key(self.env)}
            remote = self._remote()
            self._set_up("host", kinds["host"], remote)
            trial = [self.env.get("CXX", "c++"), "-x", "c++"]
            self._try("host", trial)
            if remote and (why := self._unshared(trial)):
                remote = ""
                self._set_up("host", kinds["host"], remote)
                self.problems.append(f"{self.config.url} is not used: {why}")
            self.launchers = dict.fromkeys(_variables("C", "CXX"), str(self._launcher("host")))
        except (Unusable, compilerkey.UnknownCompiler, OSError, ValueError) as error:
            self._give_up(str(error))
            return
        if NVCC in self.env:
            self._prepare_nvcc(kinds["host"], remote)

    def _prepare_nvcc(self, host: str, remote: str) -> None:
        try:
            self._set_up("cuda", f"{host}-{compilerkey.cuda_key(self.env)}", remote)
            self._try("cuda", [self.env[NVCC], *compilerkey.host_compiler(self.env), "-x", "cu"])
            self.launchers |= dict.fromkeys(_variables("CUDA"), str(self._launcher("cuda")))
        except (Unusable, compilerkey.UnknownCompiler, OSError) as error:
            self.problems.append(f"CUDA is compiled without it: {error}")

    def _give_up(self, why: str) -> None:
        self.launchers, self.tool = {}, ""
        self.problems = [why]

    # -- setting up

    def _install(self, pip: Sequence[str]) -> None:
        if not self.config.requirements:
            raise Unusable(
                "the wheelhouse has none; next: make it again by llamafleet wheelhouse build"
            )
        self.tmp.mkdir(mode=0o700)
        listed, said = self.tmp / "listed.txt", [""]
        listed.write_text(self.config.requirements, encoding="utf-8")
        argv = [*pip, "--no-deps", "--target", str(self.tmp / "tool"), "-r", str(listed)]
        try:
            # What it says of a failure must not pass for that of the build.
            self.job.command(argv, env=self.env, on_line=said.append, keep=lambda line: False)
        except JobFailed as error:
            errors = [line for line in said if line.startswith("ERROR: ")] or said
            raise Unusable(f"pip installs none: {errors[-1].strip() or error}") from error
        self.tool = " ".join(self._ask("--version").split("\n")[0].split()[::2])

    def _ask(self, *words: str) -> str:
        """What ccache says. Raises Unusable."""
        code, said = self._run([str(self.program), *words])
        if code:
            raise Unusable(f"ccache {words[0]} ended with status {code}: {said[-200:].strip()}")
        return said

    def _remote(self) -> str:
        """The shared cache with its credentials, as ccache takes it; "": there is none."""
        if self.config.url is None:
            return ""
        url = urlsplit(self.config.url)
        login = ""
        if file := self.env.get("NETRC"):
            try:
                found = netrc.netrc(file).authenticators(url.hostname or "")
            except netrc.NetrcParseError as error:  # Its text has words of the file.
                where = f"{file}, line {error.lineno}"
                self.problems.append(f"{self.config.url} is not used: {where} can't be read")
                return ""
            login = ":".join(quote(found[at] or "", safe="") for at in (0, 2)) if found else ""
        place = f"{login}@{url.netloc}" if login else url.netloc
        limits = f"connect-timeout={CONNECT_MS}|operation-timeout={ANSWER_MS}"
        return f"redis://{place}{url.path}|{limits}"

    def _set_up(self, kind: str, key: str, remote: str) -> None:
        settings = self.tmp / f"{kind}.conf"
        rows = {
            "cache_dir": self.folder / "ccache",
            "temporary_dir": self.tmp,
            "max_size": f"{self.config.limit_gb}GB",
            "compiler_check": f"string:{key}",
            # What nvcc says it read is all of it, over all of its passes; what -E prints is not.
            "depend_mode": "true",
            "stats_log": self.results,
        } | ({"remote_storage": remote} if remote else {})
        settings.unlink(missing_ok=True)
        made = os.open(settings, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(made, "w", encoding="utf-8") as file:
            file.writelines(f"{name} = {value}\n" for name, value in rows.items())
        launcher = self._launcher(kind)
        paths = {"settings": settings, "program": self.program, "failed": self.failed}
        quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
        launcher.write_text(LAUNCHER.format(**quoted), encoding="utf-8")
        launcher.chmod(0o700)

    def _launcher(self, kind: str) -> Path:
        return self.tmp / f"{kind}.sh"

    # -- trying

    def _try(self, kind: str, compiler: Sequence[str]) -> None:
        """Have a file compiled twice, that was never compiled before. Raises Unusable."""
        # A name that a random number makes would be no test of the second time.
        source = self.tmp / "trial"
        source.write_text(TRIAL.format(number=time.time_ns()), encoding="utf-8")
        first = self._compile(kind, compiler, source)
        second = self._compile(kind, compiler, source)
        if not first[MISS] or not second[HITS[0]]:
            found = " and ".join(_words(counts) for counts in (first, second))
            raise Unusable(
                f"a file compiled twice was {found}; expected a miss and a hit; next: df -h "
                f"{self.folder}"
            )

    def _unshared(self, compiler: Sequence[str]) -> str:
        """Why the shared cache can't be used; "": it can."""
        source, log = self.tmp / "trial", self.tmp / "remote.log"
        only = {"CCACHE_REMOTE_ONLY": "1", "CCACHE_LOGFILE": str(log)}
        seen = [self._compile("host", compiler, source, **only) for _ in range(2)]
        if seen[1]["remote_storage_hit"] and not any(
            one[name] for one in seen for name in NO_ANSWER
        ):
            return ""
        told = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        lines = [line.partition("] ")[2] for line in told.splitlines() if "redis" in line.lower()]
        bad = [line for line in lines if "fail" in line.lower() or "error" in line.lower()]
        return redacted((bad or lines or ["it keeps nothing"])[0])

    def _compile(
        self, kind: str, compiler: Sequence[str], source: Path, **env: str
    ) -> Counter[str]:
        """Results of one compilation. Raises Unusable where the cache itself failed."""
        for file in (self.results, self.failed):
            file.unlink(missing_ok=True)
        depends = ["-MD", "-MT", "trial.o", "-MF", str(self.tmp / "trial.d")]
        argv = [str(self._launcher(kind)), *compiler, *depends]
        code, said = self._run([*argv, "-c", str(source), "-o", str(self.tmp / "trial.o")], **env)
        last = (said.strip().splitlines() or ["nothing"])[-1][:200]
        if code:
            raise Unusable(f"a small file does not compile through it: {last}")
        if self.failed.exists():
            raise Unusable(f"it fails where the compiler does not, and says: {last}")
        return self._counts()

    def _run(self, argv: Sequence[str], **env: str) -> tuple[int, str]:
        """Status and words of a command. Raises Unusable where it can't be run, or hangs."""
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self.env | env,
                cwd=self.tmp,
                start_new_session=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise Unusable(str(error)) from error
        try:
            said, _ = process.communicate(timeout=TRIAL_S)
        except subprocess.TimeoutExpired as error:
            raise Unusable(f"{Path(argv[0]).name} has not ended after {TRIAL_S} s") from error
        finally:
            end_session(process)
        return process.returncode, said

    # -- in use

    def places(self, archive: Path, tree: Path) -> tuple[Path, Path] | None:
        """The archive's files and CMake's `tree` at paths that each build has; None: no such ones.

        pip unpacks into a folder of a random name, which stands in include paths and in the code
        itself, by __FILE__: nothing would ever be found again. The tree's own name is that of the
        fingerprint, and stands in include paths of what is no CUDA.
        """
        target, link = self.folder / "source", self.folder / "cmake"
        try:
            tree.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(tree)
            shutil.rmtree(target, ignore_errors=True)
            with tarfile.open(archive) as packed:
                if hasattr(tarfile, "data_filter"):
                    packed.extractall(target, filter="data")
                else:
                    packed.extractall(target)
            (unpacked,) = target.iterdir()
            return unpacked.rename(target / "llama-cpp-python"), link
        except (OSError, ValueError, tarfile.TarError) as error:
            self._give_up(f"the source can't be unpacked to {target}: {error}")
            return None

    def begin(self) -> None:
        """What is counted is the build's."""
        for file in (self.results, self.failed):
            file.unlink(missing_ok=True)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder / "source", ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.folder / "cmake").unlink()

    def _counts(self) -> Counter[str]:
        """How many files each word was said of."""
        try:
            text = self.results.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return Counter()
        return counted(text)

    def use(self) -> CacheUse:
        """What it did, once the build is made."""
        counts = self._counts() if self.launchers else Counter[str]()
        failed = 0
        if self.launchers and self.failed.exists():
            failed = len(self.failed.read_bytes().splitlines())
        errors = sum(counts[name] for name in NO_ANSWER)
        problems = [*self.problems]
        if failed:
            problems.append(f"it failed at {failed} files, which were compiled without it")
        if counts[NOT_KEPT]:
            problems.append(
                f"{counts[NOT_KEPT]} files could not be kept: is {self.folder} full, or read-only?"
            )
        if errors:
            problems.append(f"{self.config.url} gave no answer {errors} times")
        return CacheUse(
            tool=self.tool,
            hits=sum(counts[name] for name in HITS),
            misses=counts[MISS],
            failed=failed,
            remote_hits=counts["remote_storage_hit"],
            remote_errors=errors,
            size_mib=_mib(self.folder / "ccache") if self.launchers else None,
            problem="; ".join(problems),
        )


def note(use: CacheUse) -> str:
    """In one line."""
    if not use.tool:
        return f"built without the compiler cache: {use.problem}"
    asked = use.hits + use.misses
    shared = f", {use.remote_hits} of them shared" if use.remote_hits else ""
    problem = f"; {use.problem}" if use.problem else ""
    return f"compiler cache: {use.hits} of {asked} files were there{shared}{problem}"


def _variables(*languages: str) -> list[str]:
    return [f"CMAKE_{language}_COMPILER_LAUNCHER" for language in languages]


def _words(counts: Mapping[str, int]) -> str:
    names = (*HITS, MISS)
    return ", ".join(name for name in names if counts[name]) or ", ".join(counts) or "no result"


def _own_folder(folder: Path) -> None:
    """Make it; what another account can write gives objects that it chose. Raises Unusable."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise Unusable(str(error)) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Unusable(
            f"{folder}: found uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}; expected a "
            f"folder that uid {os.geteuid()} alone can write; next: remove it"
        )


def _mib(folder: Path) -> float:
    """Size of the files below it."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(Path(place, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return round(size / 2**20, 1)
