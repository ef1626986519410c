"""The parent's side of worker.py: start a process for one task, watch it, tell how it ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafleet.onhost.verify import llama_log
from llamafleet.onhost.verify.gpu import Gpu, Nvml
from llamafleet.onhost.verify.sampling import Recording, Sampler
from llamafleet.protocol.job import PATH

TIMEOUT_S = 900.0
"""Per task. The longest known start is about 60 s, compiling PTX; a slow disk may take minutes."""

SAME_S, OTHER_S = 60.0, 300.0
"""Of a task behind one that hung: of the same GPU, or of all, and of another GPU. The verification
is red by then, and its unit has half an hour."""
END_S = 10.0
"""For a killed process to be gone. In a call of a driver that hangs no signal ends it."""

ROOT = str(Path(__file__).parents[3])
"""The zipapp, or the source tree: what must be on the worker's path."""

OPENED = (int(ROOT.rpartition("/")[2]),) if ROOT.startswith("/proc/self/fd/") else ()
"""The zipapp's file as this process has it open: the worker runs the same code."""

# The current folder, which -c puts first on the path, must not shadow the venv's packages.
_BOOTSTRAP = (
    "import sys; sys.path[0] = sys.argv[1]; "
    "from llamafleet.onhost.verify import worker; sys.exit(worker.main())"
)


@dataclass(frozen=True)
class Outcome:
    """How a task ended: with a reply, or with a problem in words."""

    task: str
    reply: dict[str, Any] | None
    problem: str | None
    log: str
    log_path: Path
    wall_s: float
    recording: Recording = field(default_factory=Recording)
    imported: object = None
    """What the worker said of itself before it imported llama_cpp, to be read as `Imported`."""

    @property
    def result(self) -> dict[str, Any]:
        """The reply. Raises TaskProblem where there is none."""
        if self.reply is None:
            raise TaskProblem(self)
        return self.reply


class TaskProblem(Exception):
    """A task ended without a reply."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.problem or "no reply")
        self.outcome = outcome


class Children:
    """Runs tasks, their logs in `folder`, their figures of `gpus` from `nvml`.

    Several at once are tasks of several GPUs.
    """

    def __init__(
        self,
        folder: Path,
        nvml: Nvml | None,
        environment: dict[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
        *,
        gpus: tuple[Gpu, ...] = (),
        on_step: Callable[[int, int, str], object] = lambda step, steps, line: None,
    ) -> None:
        self._folder, self._nvml, self._timeout_s = folder, nvml, timeout_s
        self._gpus = gpus
        self._hung: set[str] = set()
        """UUIDs of the GPUs of tasks that hung; "": it had all."""
        self._environment = fixed(folder) | (environment or {})
        self.on_step = on_step

    def run(
        self,
        task: str,
        name: str = "",
        gpu: Gpu | None = None,
        cores: frozenset[int] = frozenset(),
        **request: Any,
    ) -> Outcome:
        """Run `task` in a fresh interpreter, which sees `gpu` alone, or all that this process sees.

        `name` names its log, worker-NAME.log. `cores`: those that it may use; empty: all.
        """
        path = self._folder / f"worker-{name or task}{f'-{gpu.index}' if gpu else ''}.log"
        start = time.monotonic()
        process = self._start(path, gpu)
        watched = (gpu,) if gpu else self._gpus
        sampler = Sampler(self._nvml, process.pid, watched) if self._nvml else None
        if sampler:
            sampler.start()
        try:
            _limit_cores(process, cores)
            limit_s = self._limit_s(gpu)
            with _time_limit(process, limit_s) as expired:
                lines = _lines(process, limit_s + END_S)
                messages = self._talk(process, lines, request | {"task": task}, sampler)
                code = _ended(process)
        finally:
            process.kill()
            _ended(process)
            recording = sampler.stop() if sampler else Recording()
        text = path.read_text(encoding="utf-8", errors="replace")
        problem = None
        if "reply" not in messages:
            late = f"no end after {limit_s:.0f} s" if expired.is_set() else None
            if late:
                self._hung.add(gpu.uuid if gpu else "")
            problem = _problem(late or messages.get("error"), code, text)
        return Outcome(
            task=task,
            reply=messages.get("reply"),
            problem=problem,
            log=text,
            log_path=path,
            wall_s=round(time.monotonic() - start, 3),
            recording=recording,
            imported=messages.get("imported"),
        )

    def _start(self, log: Path, gpu: Gpu | None) -> subprocess.Popen[str]:
        """A fresh interpreter that waits for a task."""
        # By UUID: CUDA and NVML number the GPUs in different orders.
        limit = {"CUDA_VISIBLE_DEVICES": gpu.uuid} if gpu else {}
        with log.open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-s", "-c", _BOOTSTRAP, ROOT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment | limit,
                pass_fds=OPENED,
                encoding="utf-8",
            )

    def _limit_s(self, gpu: Gpu | None) -> float:
        """How long a task may take."""
        if not self._hung:
            return self._timeout_s
        same = gpu is None or gpu.uuid in self._hung or "" in self._hung
        return min(self._timeout_s, SAME_S if same else OTHER_S)

    def _talk(
        self,
        process: subprocess.Popen[str],
        lines: Iterator[str],
        request: dict[str, Any],
        sampler: Sampler | None,
    ) -> dict[str, Any]:
        """Send the request, answer marks; the last reply or error."""
        last: dict[str, Any] = {}
        try:
            _send(process, json.dumps(request))
            for line in lines:
                message = json.loads(line)
                if "mark" in message:
                    if sampler:
                        sampler.mark(message["mark"])
                    _send(process, "")
                elif "step" in message:
                    self.on_step(message["step"], message["steps"], message["line"])
                else:
                    last |= message
        except BrokenPipeError:
            # It died; its exit status and its log say how.
            pass
        return last


def fixed(folder: Path) -> dict[str, str]:
    """The worker's environment: nothing of the caller's, whose variables could hide a GPU, put
    another library in front or change how it computes."""
    return {
        "PATH": PATH,
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        # Without a place for code compiled from PTX each process compiles anew, for a minute.
        "CUDA_CACHE_PATH": str(folder / "cuda-cache"),
        # gdb, which ggml calls for a backtrace where it is installed, can hang in a container.
        "GGML_NO_BACKTRACE": "1",
    }


def _limit_cores(process: subprocess.Popen[str], cores: frozenset[int]) -> None:
    """Before it is told what to do: by then it has started no thread."""
    if cores:
        with suppress(OSError):
            os.sched_setaffinity(process.pid, cores)


def _lines(process: subprocess.Popen[str], seconds: float) -> Iterator[str]:
    """What the worker sends, to its end or for so long: one that no signal ends closes nothing."""
    assert process.stdout is not None
    out, end, parts = process.stdout.fileno(), time.monotonic() + seconds, list[bytes]()
    while (left := end - time.monotonic()) > 0:
        if not select.select([out], [], [], left)[0]:
            continue
        data = os.read(out, 1 << 20)
        if not data:
            return
        *whole, rest = data.split(b"\n")
        for line in whole:
            yield b"".join([*parts, line]).decode()
            parts.clear()
        parts.append(rest)


def _ended(process: subprocess.Popen[str]) -> int:
    """Its exit status; 0 where no signal ends it."""
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        return 0


def _send(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


@contextmanager
def _time_limit(process: subprocess.Popen[str], seconds: float) -> Iterator[threading.Event]:
    """Kill the process after `seconds`; the event then is set."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()


def _problem(reason: str | None, code: int, log: str) -> str:
    """One line: how the process ended, and the last words of its log."""
    if reason is None:
        if code < 0:
            reason = f"the process was ended by {signal.Signals(-code).name}"
        else:
            reason = f"the process ended with status {code} and no reply"
    return f"{reason}; log: {llama_log.last_words(log)}"
