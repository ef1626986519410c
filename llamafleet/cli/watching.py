"""The hosts of an inventory, each asked again and again over a connection that stays.

An SSH connection carries one script for as long as it lasts: a digit goes there, a record comes
back, one round trip a refresh. Any other connector runs the script anew for each record. A host
that hangs or dies has a state of its own and keeps no other one waiting.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# It comes first: pyinfra's command line patches the standard library.
from llamafleet.cli.host import loaded  # isort: skip

import gevent
from gevent.event import Event
from pyinfra.api import Inventory, State
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, pop_global_arguments
from pyinfra.api.command import StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.connectors.util import make_unix_command_for_host
from pyinfra.context import ctx_config, ctx_host, ctx_inventory, ctx_state

from llamafleet.cli.errors import BadInput
from llamafleet.connection import Guard, guard_of
from llamafleet.facts.gauges import Gauges, GpuNow, NoRecord, parse
from llamafleet.facts.watch import LOST_S, command
from llamafleet.inventory import SettingsError, validate_fleet
from llamafleet.layout import Layout
from llamafleet.plans.make import to_read
from llamafleet.plans.trouble import Line, lines_of

LATE_S = 3.0
"""A record that takes longer than the interval and this is told to be late."""
SOON_S, AGAIN_S = 1.0, 15.0
"""Until a host that was lost is tried again, and one that was not reached."""
END_S = 1.0
"""For all connections to be closed."""
MOST_BYTES = 1 << 20
"""Of one record. One of 64 GPUs with a process on each has 24 KB (ROWS of tests/facts)."""
MOST_GPUS_KNOWN = 256

Ask = Callable[[int], list[str]]
"""One record, whose list of fields is that number or a later one."""


@dataclass
class Watched:
    """What is known of one host."""

    name: str
    host: Host
    layout: Layout
    asked: float = field(default_factory=time.monotonic)
    """When the record that is waited for was asked for."""
    told: float | None = None
    """When the last record came; None: none did."""
    now: Gauges | None = None
    before: Gauges | None = None
    lost: str = ""
    """Why it is not reached; "": it is, as far as is known."""
    known: dict[str, GpuNow] = field(default_factory=dict)
    """GPUs that it told of, by place."""
    records: int = 0

    def take(self, record: Gauges) -> None:
        self.before, self.now = self.now, record
        self.told, self.lost = time.monotonic(), ""
        self.records += 1
        for gpu in record.gpus:
            if len(self.known) < MOST_GPUS_KNOWN or gpu.pci in self.known:
                self.known[gpu.pci] = gpu

    def lose(self, why: str) -> None:
        """What it told before is no longer so."""
        self.lost, self.now, self.before = why, None, None

    def lines(self, interval_s: float) -> list[Line]:
        """As things are now."""
        if self.lost:
            return [Line(self.name, "unreachable", self.lost)]
        late = time.monotonic() - self.asked
        if late > interval_s + LATE_S and not (self.now and self.now.fault):
            return [Line(self.name, "silent", f"no record for {late:.0f} s")]
        if self.now is None:
            return [Line(self.name, "asked")]
        return lines_of(self.name, self.now, self.before, list(self.known.values()))


class Watch:
    """All hosts, each followed by a greenlet."""

    def __init__(self, watched: Sequence[Watched], interval_s: float, records: int | None) -> None:
        """`records`: so many of each host; None: until it is ended."""
        self.hosts, self.interval_s = watched, interval_s
        self._records = records
        self._greenlets: list[gevent.Greenlet] = []
        self._over = Event()
        self.interrupted = False
        """By Ctrl-C, a request to end, or a terminal that is gone."""

    def start(self, within: Callable[[Host], ExitStack]) -> None:
        for one in self.hosts:
            self._greenlets.append(gevent.spawn(self._follow, one, within))
        gevent.spawn(self._all_done)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            gevent.signal_handler(number, self._interrupt)

    def _all_done(self) -> None:
        gevent.joinall(self._greenlets)
        self._over.set()

    def _interrupt(self) -> None:
        self.interrupted = True
        self._over.set()

    def wait(self, seconds: float) -> None:
        """So long, until all hosts are done, or until it is interrupted."""
        self._over.wait(seconds)

    def lines(self) -> list[Line]:
        return [line for one in self.hosts for line in one.lines(self.interval_s)]

    def end(self) -> None:
        """Each script's input ends with its connection, and so does the script."""
        gevent.killall(self._greenlets, block=False)
        closing = [gevent.spawn(_close, one.host) for one in self.hosts]
        gevent.joinall(closing, timeout=END_S)

    # -- one host ----------------------------------------------------------------------------------

    def _follow(self, one: Watched, within: Callable[[Host], ExitStack]) -> None:
        with within(one.host):
            guard = guard_of(one.host)
            while True:
                before = one.records
                try:
                    self._connected(one, guard)
                except gevent.GreenletExit:
                    return
                except Exception as error:  # A connector raises what it likes.
                    one.lose(_why(error))
                if self._done(one) or (self._records is not None and one.lost):
                    return
                gevent.sleep(AGAIN_S if one.records == before else SOON_S)

    def _done(self, one: Watched) -> bool:
        """With services a second record tells what they do meanwhile."""
        if self._records is None or one.now is None:
            return False
        return one.records >= self._records + bool(one.now.services)

    def _connected(self, one: Watched, guard: Guard) -> None:
        """Ask as long as the connection lasts. Raises what it ends with."""
        one.asked = time.monotonic()
        one.host.connect(raise_exceptions=True, show_errors=False)
        arguments = _arguments(one.host)
        one.asked = time.monotonic()
        # What sudo wants is asked for here, once; a right that is missing is told here.
        if not one.host.run_shell_command(StringCommand("true"), **arguments)[0]:
            raise ConnectError(guard.words or "found no command that runs; expected sh")
        if getattr(one.host.connector, "client", None) is None:
            return self._called(one, guard, arguments)
        with _stream(one, self.interval_s, arguments) as ask:
            while not self._done(one):
                self._asked(one, ask)

    def _called(self, one: Watched, guard: Guard, arguments: dict[str, Any]) -> None:
        arguments["_timeout"] = LOST_S

        def call(level: int) -> list[str]:
            text = command(one.layout, self.interval_s, level)
            done, output = one.host.run_shell_command(StringCommand(text), **arguments)
            if not done:
                raise ConnectError(guard.words)
            return list(output.stdout_lines)

        while not self._done(one):
            self._asked(one, call)

    def _asked(self, one: Watched, ask: Ask) -> None:
        """One record, then what is left of the interval."""
        begun = one.asked = time.monotonic()
        one.take(parse(ask(one.now.level if one.now else 1)))
        if self._done(one):
            return
        gevent.sleep(max(0.0, self.interval_s - (time.monotonic() - begun)))
        one.asked = time.monotonic()


def _why(error: Exception) -> str:
    """One line; that of a guard says already what was found and what is next."""
    said = str(error) or type(error).__name__
    if "found " in said:
        return said
    return f"connection: found {said}; expected an answer; next: it is tried again"


def _arguments(host: Host) -> dict[str, Any]:
    """sudo, su, shell and such, as the inventory has them."""
    everything, _ = pop_global_arguments(host.state, host, {})
    keys = set(CONNECTOR_ARGUMENT_KEYS)
    return {key: value for key, value in everything.items() if key in keys}


@contextmanager
def _stream(one: Watched, interval_s: float, arguments: dict[str, Any]) -> Iterator[Ask]:
    """Asks the script that runs at the other end of a channel."""
    own = {k: v for k, v in arguments.items() if k not in _CONTROL}
    text = StringCommand(command(one.layout, interval_s))
    line = make_unix_command_for_host(one.host.state, one.host, text, **own).get_raw_value()
    client: Any = one.host.connector.client  # type: ignore[attr-defined]
    channel = client.get_transport().open_session(timeout=LOST_S)
    try:
        channel.settimeout(LOST_S)
        channel.set_combine_stderr(True)
        channel.exec_command(line)
        reader = _Records(channel)
        yield reader.ask
    finally:
        with suppress(Exception):
            channel.close()


_CONTROL = frozenset({"_success_exit_codes", "_timeout", "_get_pty", "_stdin"})
"""Of a call, not of its command: pyinfra.connectors.util.extract_control_arguments."""


class _Records:
    """Records out of the bytes of a channel."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._number = 0
        self._rest = b""

    def ask(self, level: int) -> list[str]:
        """The next one, of that list of fields or a later one. Raises NoRecord, ConnectError."""
        self._number += 1
        end = b"#end %d" % self._number
        deadline = time.monotonic() + LOST_S
        lines: list[bytes] = []
        size = 0
        self._channel.sendall(b"%d" % level)
        while end not in lines:
            try:
                chunk = self._channel.recv(1 << 16)
            except TimeoutError:
                chunk = b""
            left = time.monotonic() < deadline
            if not chunk or not left or size > MOST_BYTES:
                raise self._failed(lines, bool(chunk), left)
            size += len(chunk)
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            lines += (one.rstrip(b"\r") for one in whole)
        return [one.decode("utf-8", errors="replace") for one in lines]

    def _failed(self, lines: list[bytes], more: bool, left: bool) -> Exception:
        said = [*lines, self._rest]
        text = next((one.decode("utf-8", "replace") for one in reversed(said) if one.strip()), "")
        if more and left:
            return NoRecord(f"found more than {MOST_BYTES} bytes; expected one record")
        if not left:
            return ConnectError(f"no record for {LOST_S:.0f} s")
        return ConnectError(f"its script ended{f': {text[:200]}' if text else ''}")


def _close(host: Host) -> None:
    """Whatever state it is in; also the file that answers sudo's question goes."""
    client: Any = getattr(host.connector, "client", None)
    asked = any(value for key, value in host.connector_data.items() if "askpass" in key)
    with suppress(Exception):
        if asked:
            host.disconnect()
    with suppress(Exception):
        if client is not None:
            client.close()


# -- an inventory ----------------------------------------------------------------------------------


@contextmanager
def watching(
    names: Sequence[str], inventory: Path, interval_s: float, records: int | None
) -> Iterator[Watch]:
    """Raises BadInput before any host is touched."""
    # Its warnings would go across the screen; what fails is told in the host's line.
    logging.getLogger("pyinfra").addHandler(logging.NullHandler())
    with loaded(str(inventory)) as (state, hosts):
        state.init(hosts, ctx_config.get())  # type: ignore[no-untyped-call]
        watch = Watch(_watched(names, hosts, inventory), interval_s, records)
        config = ctx_config.get()  # type: ignore[no-untyped-call]

        def within(host: Host) -> ExitStack:
            stack = ExitStack()
            for context, value in _contexts(state, config, hosts, host):
                stack.enter_context(context.use(value))
            return stack

        watch.start(within)
        try:
            yield watch
        finally:
            watch.end()


def _contexts(
    state: State, config: object, hosts: Inventory, host: Host
) -> tuple[tuple[Any, Any], ...]:
    """Each greenlet has its own of pyinfra's contexts."""
    return (ctx_state, state), (ctx_config, config), (ctx_inventory, hosts), (ctx_host, host)


def _watched(names: Sequence[str], hosts: Inventory, inventory: Path) -> list[Watched]:
    every = {host.name: host for host in hosts}
    known = ", ".join(every) or "no host"
    if missing := [name for name in names if name not in every]:
        raise BadInput(
            f"{', '.join(missing)}: found no such host in {inventory}; expected some of {known}"
        )
    chosen = {name: every[name] for name in names or every}
    if not chosen:
        raise BadInput(f"{inventory}: found no host; expected one or more")
    try:
        data = {name: host.data.dict() for name, host in chosen.items()}  # type: ignore[no-untyped-call]
        settings = validate_fleet(data)
    except SettingsError as error:
        raise BadInput("; ".join(error.lines)) from error
    return [Watched(n, host, to_read(settings[n])[0]) for n, host in chosen.items()]
