"""The service's figures for Prometheus: https://prometheus.io/docs/practices/naming/.

docs/serving.md lists each; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from llamafleet.onhost.serve.ask import Ask
from llamafleet.protocol.serve import State

KIND = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 180)
_RATES = (1, 2.5, 5, 10, 20, 30, 40, 60, 80, 100, 150, 200, 300, 500)


class Metrics:
    """All of one process."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._asks: Callable[[], Iterable[Ask]] = tuple
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._of_requests(registry)
        self._of_service(registry)

    def _of_requests(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "llamafleet_requests",
            "Requests that were answered, by route and HTTP status; 499: the client left.",
            ["route", "status"],
            registry=registry,
        )
        self.prompt = Counter("llamafleet_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.made = Counter(
            "llamafleet_generated_tokens", "Tokens that the model made.", registry=registry
        )
        self.first = Histogram(
            "llamafleet_time_to_first_token_seconds",
            "From a request's arrival to its first token, the time in the queue within.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queued = Histogram(
            "llamafleet_queue_seconds",
            "From a request's arrival until the model began with it.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.rate = Histogram(
            "llamafleet_generation_tokens_per_second",
            "Of each answer of two tokens and more, after its first.",
            buckets=_RATES,
            registry=registry,
        )
        self._waiting = Gauge(
            "llamafleet_requests_waiting", "Requests in the queue.", registry=registry
        )
        self._computing = Gauge(
            "llamafleet_requests_computing", "1: the model computes.", registry=registry
        )

    def _of_service(self, registry: CollectorRegistry) -> None:
        self.probes = Counter(
            "llamafleet_probes",
            "Proofs that the model answers a token, by how they ended.",
            ["result"],
            registry=registry,
        )
        self.load = Gauge(
            "llamafleet_load_seconds",
            "From the process's start to its first token; 0: not yet.",
            registry=registry,
        )
        self.context = Gauge(
            "llamafleet_context_tokens", "Length of the context in force.", registry=registry
        )
        self.reduced = Gauge(
            "llamafleet_reduced",
            "1: an out of memory brought a smaller placement than the settings ask for.",
            registry=registry,
        )
        self._info = Gauge(
            "llamafleet_build_info",
            "Always 1; its labels tell which build serves which model, and how.",
            ["profile", "model", "fingerprint", "llama_cpp_python", "n_gpu_layers", "kv_type"],
            registry=registry,
        )
        self._ready = Gauge(
            "llamafleet_ready", "1: the model has answered a token.", registry=registry
        )
        self._state = Gauge(
            "llamafleet_state", "1 for the state it is in.", ["state"], registry=registry
        )

    def of_line(
        self,
        waiting: Callable[[], float],
        computing: Callable[[], float],
        asks: Callable[[], Iterable[Ask]],
    ) -> None:
        """Where the queue's figures are asked for, and what is under way."""
        self._asks = asks
        self._waiting.set_function(waiting)
        self._computing.set_function(computing)

    def info(self, **labels: str) -> None:
        self._info.labels(**labels).set(1)

    def state(self, state: State) -> None:
        for one in get_args(State):
            self._state.labels(one).set(one == state)
        self._ready.set(state == "ready")

    def answered(self, route: str, status: int) -> None:
        self.requests.labels(route, str(status)).inc()

    def asked(self, ask: Ask) -> None:
        """What a request cost, once the model is done with it."""
        if ask.begun is None:
            return
        self.queued.observe(ask.begun - ask.came)
        self._count(ask)
        if ask.first is not None:
            self.first.observe(ask.first - ask.came)
        if ask.rate is not None:
            self.rate.observe(ask.rate)

    def _count(self, ask: Ask) -> None:
        """An answer of minutes is no leap at its end."""
        now = (ask.prompt, ask.made)
        self.prompt.inc(now[0] - ask.counted[0])
        self.made.inc(now[1] - ask.counted[1])
        ask.counted = now

    def page(self) -> bytes:
        for ask in self._asks():
            self._count(ask)
        return generate_latest(self._registry)
