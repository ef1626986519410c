"""One host of an inventory, read over its own connection as a deploy reads it."""

# pyinfra's command line patches the standard library, and must be the first to be imported.
from pyinfra_cli.inventory import make_inventory  # type: ignore[import-untyped]  # isort: skip

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from pyinfra.api import Config, Inventory, State
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.context import ctx_config, ctx_host, ctx_inventory, ctx_state

from llamafleet.cli.errors import RECORD, BadInput
from llamafleet.connection import guard_of
from llamafleet.facts.failed_log import HEAD, TIMEOUT_S, FailedLog
from llamafleet.facts.fit import NO_BUILD, FitText
from llamafleet.facts.fit import TIMEOUT_S as FIT_TIMEOUT_S
from llamafleet.facts.snapshot import SnapshotText, arguments
from llamafleet.inventory import SettingsError, validate_fleet
from llamafleet.plans.make import to_read
from llamafleet.protocol.fit import Use
from llamafleet.protocol.offer import Told, Wish
from llamafleet.received import Unreadable, received, received_json
from llamafleet.refusal import of_exit
from llamafleet.settings import Settings

T = TypeVar("T")


def read_host(name: str, inventory: Path, extra: dict[str, object]) -> tuple[Settings, str]:
    """Settings of a host of the inventory, those of `extra` on top, and the text of its snapshot.

    Raises BadInput, as click's commands end with.
    """
    return _asked(name, inventory, extra, RECORD, lambda host, set: (set, _text(host, set)))


def read_failed_log(name: str, inventory: Path) -> tuple[str, str]:
    """Path and text of the log of a host's last failed job. Raises BadInput."""
    return _asked(name, inventory, {}, "llamafleet diagnose FILE", _failed_log)


def read_fit(name: str, inventory: Path, asked: tuple[str, Wish, Use, int]) -> Told:
    """What of a model on a host fits its GPUs: path, wish, use, MiB in reserve. Raises BadInput."""
    text = _asked(name, inventory, {}, "--gpu NAME or --vram MIB", partial(_fit, asked))
    answer = text.strip().rpartition("\n")[2]
    if answer == NO_BUILD:
        raise BadInput(f"{name}: found no build; expected one that is switched to; next: deploy")
    data = received_json(answer)
    if isinstance(data, dict) and isinstance(data.get("error"), str):
        raise BadInput(f"{name}: {data['error']}")
    told = data if isinstance(data, Unreadable) else received(Told, data)
    if isinstance(told, Unreadable):
        raise BadInput(f"{name}: its answer can't be read: {told.reason}; next: deploy it again")
    return told


def _fit(asked: tuple[str, Wish, Use, int], host: Host, settings: Settings) -> str:
    model, wish, use, reserve = asked
    told = {"model": model, "wish": wish, "use": use, "reserve": reserve}
    with _connected(host):
        text = host.get_fact(
            FitText,
            layout=to_read(settings)[0],
            **told,
            _timeout=FIT_TIMEOUT_S,
            _ignore_errors=True,
        )
    return text or ""


def _asked(
    name: str,
    inventory: Path,
    extra: dict[str, object],
    otherwise: str,
    ask: Callable[[Host, Settings], T],
) -> T:
    """The answer of a host of the inventory. `otherwise`: what to type if there is none."""
    if not os.path.isfile(inventory):  # noqa: PTH113 - it refuses no name
        # pyinfra would take its name for that of a host.
        raise BadInput(
            f"{name}: found no such file, and no inventory {inventory}; next: {otherwise}"
        )
    with loaded(str(inventory)) as (state, hosts):
        state.init(hosts, ctx_config.get())  # type: ignore[no-untyped-call]
        host = hosts.get_host(name, default=None)
        if host is None:
            known = ", ".join(h.name for h in hosts) or "no host"
            raise BadInput(
                f"{name}: found no such file, nor host in {inventory}; expected one of {known}; "
                f"next: {otherwise}"
            )
        settings = _settings(host, extra)
        guard_of(host)
        with ctx_inventory.use(hosts), ctx_host.use(host):
            return ask(host, settings)


@contextmanager
def loaded(inventory: str) -> Iterator[tuple[State, Inventory]]:
    """The inventory, as pyinfra's command line reads it. Raises BadInput."""
    state, config = State(), Config()  # type: ignore[no-untyped-call]
    with ctx_state.use(state), ctx_config.use(config):
        try:
            hosts = make_inventory(inventory, cwd=str(Path(inventory).parent))
        except SystemExit as error:
            raise BadInput(of_exit(inventory, error)) from error
        except Exception as error:  # It is a program, which may fail in any way.
            its = getattr(error, "exception", error)  # pyinfra's own wrapper has no text.
            raise BadInput(f"{inventory} can't be read: {type(its).__name__}: {its}") from error
        yield state, hosts


def _settings(host: Host, extra: dict[str, object]) -> Settings:
    data = {**host.data.dict(), **extra}  # type: ignore[no-untyped-call]
    try:
        return validate_fleet({host.name: data})[host.name]
    except SettingsError as error:
        raise BadInput("; ".join(error.lines)) from error


def _text(host: Host, settings: Settings) -> str:
    with _connected(host):
        text = host.get_fact(SnapshotText, **arguments(*to_read(settings)), _ignore_errors=True)
    if not text:
        raise BadInput(f"{host.name} can't be read; next: pyinfra -vvv {host.name} exec -- true")
    return text


def _failed_log(host: Host, settings: Settings) -> tuple[str, str]:
    layout = to_read(settings)[0]
    with _connected(host):
        text = host.get_fact(
            FailedLog,
            state_dir=layout.state,
            jobs_of_root=layout.jobs_of_root,
            _timeout=TIMEOUT_S,
            _ignore_errors=True,
        )
    if text is None:
        raise BadInput(f"{host.name} can't be read; next: pyinfra -vvv {host.name} exec -- true")
    head, _, log = text.partition("\n")
    if not head.startswith(HEAD):
        raise BadInput(f"{host.name}: found no log of a failed job; next: llamafleet report")
    return f"{host.name}:{head.removeprefix(HEAD)}", log


@contextmanager
def _connected(host: Host) -> Iterator[None]:
    try:
        host.connect(raise_exceptions=True, show_errors=False)
    except ConnectError as error:
        raise BadInput(f"{host.name} is not reached: {error}") from error
    try:
        yield
    finally:  # It also removes the file that answers sudo's question for a password.
        host.disconnect()
