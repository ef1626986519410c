"""A library whose functions answer within a time, or are asked no more: a GPU that fell off the bus
can hang its driver, and with it whoever asks NVML."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from types import ModuleType
from typing import Any

ANSWER_S = 120.0
"""Longest wait for one answer. nvmlInit starts every card whose driver is unloaded when idle; a
driver that hangs answers never."""
TIMEOUT = 10
"""NVML_ERROR_TIMEOUT."""

Job = tuple[Callable[..., Any], tuple[Any, ...], "SimpleQueue[tuple[Any, Exception | None]]"]


class Answering:
    """pynvml, asked in a thread of its own, which may be left behind."""

    def __init__(self, module: ModuleType, seconds: float | None = None) -> None:
        self._module: Any = module
        self._seconds = ANSWER_S if seconds is None else seconds
        self._lock, self._jobs = Lock(), SimpleQueue[Job | None]()
        self._started = False
        self.hung = ""
        """The function that gave no answer; "": none."""
        self.about: Any = None
        """Its first argument, a GPU's handle."""

        class NoAnswer(module.NVMLError):  # type: ignore[name-defined, misc]
            """pynvml's own words for an error come from the library that hangs."""

            __str__ = lambda _: self.why()  # noqa: E731

        self._no_answer = NoAnswer

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return partial(self._ask, name, found) if name.startswith("nvml") else found

    def why(self) -> str:
        return f"NVML hangs: no answer to {self.hung} within {self._seconds:.0f} s"

    def _ask(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """The function's answer, or what it raises."""
        with self._lock:
            if self.hung:
                raise self._no_answer(TIMEOUT)
            if not self._started:
                Thread(target=self._serve, name="asks nvml", daemon=True).start()
                self._started = True
            answer: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
            self._jobs.put((function, args, answer))
            try:
                told, error = answer.get(timeout=self._seconds)
            except Empty:
                self.hung, self.about = name, args[0] if args else None
                raise self._no_answer(TIMEOUT) from None
        if error is not None:
            raise error
        return told

    def _serve(self) -> None:
        while job := self._jobs.get():
            function, args, answer = job
            try:
                answer.put((function(*args), None))
            except Exception as error:
                answer.put((None, error))

    def done(self) -> None:
        """Nothing is asked any more."""
        self._jobs.put(None)
        self._started = False
