"""The process that loads the model and serves it: from the first line of its input to its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llamafleet.onhost.serve import proof
from llamafleet.onhost.serve.ask import ASKED, Ask
from llamafleet.onhost.serve.child import BEAT_S, Said, Told, read_told
from llamafleet.onhost.serve.errors import Left
from llamafleet.onhost.serve.house import House, Model
from llamafleet.onhost.verify.worker import Channel
from llamafleet.protocol.serve import State

if TYPE_CHECKING:
    from llamafleet.onhost.serve.metrics import Metrics
    from llamafleet.onhost.serve.model import Loaded

IDLE_S = 60.0
"""Nobody asked for so long: the model is asked for a token."""
PROBE_S = 120.0
"""For that token. One that pages its weights in again from a disk takes long, but not that."""
STALL_S = 900.0
"""For one step of a request, a batch of its prompt or one token. On a CPU a batch of 512 tokens of
a model of 70 B takes minutes."""
GPU_STALL_S, GPU_BATCH = 120.0, 2048
"""The same where no layer is computed by a CPU, for batches of at most so many tokens."""
TICK_S = 1.0
KEEP_ALIVE_S = 30
"""Clients of httpx keep a connection for 5 s: theirs ends first, so that no request is lost."""
CONNECTIONS = 512
BACKLOG = 128
"""Taken in one go, before those beyond CONNECTIONS are sent away: both fit into 1024 descriptors,
systemd's usual limit."""
AFTER_DRAIN_S = 2.0
"""For what was cut off at the end of the drain to be let go."""
_PR_SET_PDEATHSIG = 1


class Unproven(Exception):
    """The model does not serve as it should; the text says why."""


class Serving:
    """One process, its event loop's side."""

    def __init__(self, told: Told, channel: Channel, started: float) -> None:
        self._told, self._channel, self._started = told, channel, started
        self._house = House(suspect=self._suspect)
        self._doubt = ""
        """Why the model is to be asked for a token."""
        self._proven = 0.0
        """time.monotonic() of the last token that proved it."""
        self._loaded: Loaded | None = None
        self._draining: asyncio.Task[None] | None = None
        self._said = Said("loading")

    async def run(self) -> int:
        """Serve until a signal ends it; the exit status."""
        # What these import lies in the folder of the server's own packages.
        from llamafleet.onhost.serve.door import Door
        from llamafleet.onhost.serve.metrics import Metrics

        told = self._told
        self._metrics: Metrics = Metrics()
        door = Door(told.config.alias, told.key, told.config.limits, self._house, self._metrics)
        self._server = _uvicorn(door, told.config.limits.receive_s)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop)
        self._turn("loading")
        beating = asyncio.ensure_future(self._beat())
        sockets = [_inherited(told.socket)]
        listening = asyncio.ensure_future(self._server.serve(sockets=sockets))
        try:
            await self._load()
            await self._watch(listening)
        except Unproven as problem:
            self._turn("failed", str(problem))
            return 1
        finally:
            beating.cancel()
        return 0

    async def _load(self) -> None:
        """Load and prove. Raises Unproven."""
        told = self._told
        try:
            self._loaded = loaded = await asyncio.to_thread(_load, told)
        except Exception as error:
            raise Unproven(
                f"model: found {told.config.model} that llama.cpp can't load ({error}); expected "
                "a GGUF that it knows and memory for it; next: the lines before this one say why"
            ) from error
        self._describe()
        await self._prove()
        load_s = round(time.monotonic() - self._started, 3)
        self._metrics.load.set(load_s)
        self._house.model = Model(loaded.app, loaded.validate)
        self._turn("ready", load_s=load_s)

    def _describe(self) -> None:
        from llamafleet.onhost.serve.model import VERSION

        told, placement = self._told, self._told.placement
        self._metrics.context.set(placement.n_ctx)
        self._metrics.reduced.set(told.reduced)
        self._metrics.info(
            profile=told.config.profile,
            model=told.config.alias,
            fingerprint=told.fingerprint,
            llama_cpp_python=VERSION,
            n_gpu_layers=str(placement.n_gpu_layers),
            kv_type=placement.kv_type,
        )

    async def _prove(self) -> None:
        """One token from the model, where it should lie. Raises Unproven."""
        loaded, told = self._loaded, self._told
        assert loaded is not None
        ask = Ask()
        ASKED.set(ask)
        try:
            async with self._house.line.turn(ask, first=True):
                await asyncio.wait_for(asyncio.to_thread(loaded.answer_one), PROBE_S)
            problem = await asyncio.to_thread(
                proof.judge,
                loaded.log,
                told.backend,
                told.placement.n_gpu_layers,
                lambda: proof.held_by(os.getpid()),
            )
        except asyncio.TimeoutError:
            problem = f"model: found no token within {PROBE_S:.0f} s; next: nvidia-smi"
        except Exception as error:
            problem = f"model: found no token ({type(error).__name__}: {error}); next: nvidia-smi"
        self._metrics.probes.labels("failed" if problem else "ok").inc()
        if problem:
            raise Unproven(problem)
        self._proven, self._doubt = time.monotonic(), ""

    async def _watch(self, listening: asyncio.Future[None]) -> None:
        """Until the server ends: doubts are settled, silence too. Raises Unproven."""
        proving: asyncio.Task[None] | None = None
        while not listening.done():
            waits: set[asyncio.Future[None]] = {listening} | ({proving} if proving else set())
            await asyncio.wait(waits, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            if self._draining or listening.done():
                continue
            # Also while a proof waits for its turn: what computes before it may hang.
            self._see_stall()
            if proving is None:
                proving = self._doubted()
            elif proving.done():
                proving.result()
                proving = None
                if self._house.state != "ready":
                    self._turn("ready")
        listening.result()

    def _doubted(self) -> asyncio.Task[None] | None:
        """The proof that is due; None: none is."""
        if self._doubt:
            self._turn("loading", self._doubt)
        elif self._idle_s() < IDLE_S:
            return None
        return asyncio.ensure_future(self._prove())

    def _idle_s(self) -> float:
        assert self._loaded is not None
        if not self._house.line.idle:
            return 0.0
        return time.monotonic() - max(self._proven, self._loaded.llama.moved)

    def _see_stall(self) -> None:
        """Raises Unproven."""
        assert self._loaded is not None
        llama = self._loaded.llama
        computes, most = llama.computing and not self._house.line.idle, _longest(self._told)
        if computes and time.monotonic() - llama.moved > most:
            text = f"model: found a step of {most:.0f} s without an end; next: nvidia-smi"
            raise Unproven(text)

    def _suspect(self, why: str) -> None:
        self._doubt = why

    def _turn(self, state: State, reason: str = "", load_s: float | None = None) -> None:
        if self._draining and state != "failed":
            state = "draining"
        self._house.state = state
        self._metrics.state(state)
        self._said = Said(state, reason, load_s)
        self._say()

    def _say(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(asdict(self._said))

    async def _beat(self) -> None:
        """The parent hears that the event loop runs."""
        while True:
            await asyncio.sleep(BEAT_S)
            self._say()

    def _stop(self) -> None:
        """A signal: no new request, those under way end in time."""
        if self._house.model is None:
            os._exit(0)
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        self._turn("draining")
        asks = self._house.asks
        await _until(lambda: not asks, self._told.config.limits.drain_s)
        for ask in set(asks):
            ask.leave()
        await _until(lambda: not asks, AFTER_DRAIN_S)
        self._server.should_exit = True


async def _until(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        await asyncio.sleep(0.05)


def _longest(told: Told) -> float:
    """That a step may take."""
    placed = told.placement
    on_gpus = told.backend == "cuda" and placed.n_gpu_layers == -1
    return GPU_STALL_S if on_gpus and placed.n_batch <= GPU_BATCH else STALL_S


def _load(told: Told) -> Loaded:
    from llamafleet.onhost.serve.model import Loaded

    return Loaded(told.config, told.placement)


def _inherited(descriptor: int) -> socket.socket:
    return socket.socket(fileno=descriptor)


def _uvicorn(door: Any, receive_s: float) -> Any:
    """The server; its signals are ours."""
    import uvicorn

    from llamafleet.onhost.serve.wire import Wire

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    limited = type("Limited", (Wire,), {"receive_s": receive_s, "most": CONNECTIONS})
    return Server(
        uvicorn.Config(
            door,
            http=limited,
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            # What strangers send is nothing for the journal.
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            backlog=BACKLOG,
            timeout_graceful_shutdown=int(AFTER_DRAIN_S),
        )
    )


def main() -> int:
    """Serve; the exit status."""
    started = time.monotonic()
    channel = Channel()
    # Whatever ends the parent ends this process too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    told = read_told(sys.stdin.readline())
    # Behind the zipapp, before the build's own: these fit each other.
    sys.path.insert(1, told.config.libraries)
    status = asyncio.run(_main(told, channel, started))
    return status


async def _main(told: Told, channel: Channel, started: float) -> int:
    try:
        status = await Serving(told, channel, started).run()
    except Left:
        status = 0
    # Threads that hang in a driver's call would keep the process.
    sys.stderr.flush()
    os._exit(status)
