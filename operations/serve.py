"""The services of a host: told what to serve, started, asked for a token, and gone back from."""

from __future__ import annotations

import shlex
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

from pyinfra.api import FactBase, FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.connection import PATIENCE_S
from llamafleet.history.store import ServedLine
from llamafleet.layout import serve_unit
from llamafleet.plans.plan import Problem, Served, ServePlan
from llamafleet.protocol.job import Stamp
from llamafleet.protocol.serve import STATUS, Answer
from llamafleet.received import Unreadable, received_text
from operations import jobs, lock
from operations.build import report_failure
from operations.container import as_told, bring_image, keep_former, put_back
from operations.files import put, switch_units, systemctl
from operations.run import HostRun, here
from operations.watch import END_LIMIT_S, POLL_SECONDS, SAY_SECONDS, End, EndOfJob

ASK_S = 10
"""How long one question waits on the host until the service is ready."""
TRIES = 3
"""How often one that is ready may refuse the question."""
STOP_S = 900
"""For all services to drain, each for as long as its limits say."""
ASK_LIMIT_S = 90
"""For one question: beside that the token, which may wait behind a long prompt."""
MEANT = {"build": "build that was proven", "image": "image of the settings"}
"""What services are to answer on, by what can be gone back from."""


class AnswerOfService(FactBase[Answer | None]):
    """What a service answers on its own host. None: nothing that can be understood."""

    def command(
        self, rights: str, python: str, zipapp: str, *, config: str, key: str, wait_s: int
    ) -> StringCommand:
        program = StringCommand(QuoteString(python), "-I", QuoteString(zipapp))
        ask = StringCommand("serve-check --wait", str(wait_s), "--config", QuoteString(config))
        # Who deploys opens the key; the account only gets it handed.
        return StringCommand(rights, program, ask, "<", QuoteString(key))

    @staticmethod
    def default() -> Answer | None:
        return None

    def process(self, output: list[str]) -> Answer:
        begin = next((at for at, line in enumerate(output) if line.startswith("{")), 0)
        answer = received_text(Answer, "\n".join(output[begin:]))
        if isinstance(answer, Unreadable):
            raise FactProcessError(f"answer of a service: {answer.reason}")
        return answer


@operation()
def libraries() -> Generator[PyinfraCommand, None, None]:
    """
    Install the Python packages of the server itself, beside the build and not in it.

    **Example:**

    .. code:: python

        from operations.serve import libraries
        libraries(name="Bring the server's packages")
    """
    run = here()
    serving = run.plan().serve
    wanted = serving.libraries if serving else None
    if wanted is None or wanted.job is None:
        run.noop(f"the server's packages: {wanted.reason}" if wanted else "nothing is served")
        return

    def done(stamp: Stamp) -> bool:
        if not stamp.ok:
            return report_failure(run, wanted.config.kind, stamp)
        run.changed("the server's packages")
        return True

    yield from jobs.carry_out(run, wanted.job, wanted.config, done)


@operation()
def serve() -> Generator[PyinfraCommand, None, None]:
    """
    Start what is to be served and ask each service for a token; remove what is not wanted.

    A service whose settings, key, code, build or image changed is drained and started again. Where
    one does not answer after a switch of build or image, the host goes back to that of before.

    **Example:**

    .. code:: python

        from operations.serve import serve
        serve(name="Serve")
    """
    run = here()
    plan = run.plan()
    wanted = plan.serve
    if plan.problems and run.host.state.is_executing:
        # What the models' headers tell is known by now alone.
        yield FunctionCommand(_refuse, (run, plan.problems), {})
        return
    if wanted is None:
        run.noop("nothing is served")
        return
    if not wanted.needed:
        asked = _Asked()
        if run.host.state.is_executing:
            # Their word is as old as their last proof of a token.
            asked.problems = _problems(run, run.host, wanted.services)
        if not asked.problems:
            run.served = [_line(one, "ready") for one in wanted.services]
            run.noop(f"serves {', '.join(one.config.profile for one in wanted.services)}")
            return
        yield FunctionCommand(_judge, (run, wanted, asked), {})
        return
    yield from bring_image(run)
    yield from keep_former(run, wanted)
    yield from put(run, wanted.files.write)
    yield from _remove(run, wanted)
    yield from switch_units(run, wanted.files)
    yield from _start(run, wanted.changed)
    for one in wanted.changed:
        run.changed(f"{one.config.profile} {one.action}ed ({one.reason})")
    for name in wanted.gone:
        run.changed(f"{name} no longer served")
    asked = _Asked()
    yield FunctionCommand(_ask_all, (run, wanted, asked), {})
    if asked.problems and wanted.back:
        yield from _go_back(run, wanted, asked)
    elif not asked.problems:
        yield from _forget(run, wanted)
    yield FunctionCommand(_judge, (run, wanted, asked), {})


@dataclass
class _Asked:
    """Why services don't serve, by profile."""

    problems: dict[str, Problem] = field(default_factory=dict)
    again: dict[str, Problem] | None = None
    """The same on the build or image of before, where the host went back to that."""
    services: tuple[Served, ...] = ()
    """What was asked then."""


def _refuse(state: State, host: Host, run: HostRun, problems: Iterable[Problem]) -> bool:
    for problem in problems:
        run.fail(problem)
    return False


def _remove(run: HostRun, wanted: ServePlan) -> Generator[StringCommand, None, None]:
    """Stop what is not wanted any more, and forget what it said."""
    if not wanted.gone:
        return
    units = map(serve_unit, wanted.gone)
    yield StringCommand(systemctl(run), "stop", *units, "2>/dev/null || true", _timeout=STOP_S)
    folders = [QuoteString(run.layout().serve_state(name)) for name in wanted.gone]
    yield StringCommand(*jobs.as_account(run), "rm -rf --one-file-system --", *folders)


def _start(run: HostRun, services: Sequence[Served]) -> Generator[StringCommand, None, None]:
    """Drain what runs of them, forget what it said, and start them anew.

    In one command that hears of no interruption: nobody would start again what has drained.
    """
    if not services:
        return
    rights = " ".join(jobs.as_account(run))
    units = " ".join(shlex.quote(one.unit) for one in services)
    folders = " ".join(shlex.quote(one.config.folder) for one in services)
    told = " ".join(shlex.quote(f"{one.config.folder}/{STATUS}") for one in services)
    script = (
        f"trap '' HUP INT PIPE TERM; {systemctl(run)} stop {units} 2>/dev/null; "
        f"{rights} mkdir -p -- {folders}; {rights} rm -f -- {told}; "
        f"{systemctl(run)} restart --no-block {units}"
    )
    yield StringCommand("sh -c", QuoteString(script), _timeout=STOP_S)


def _forget(run: HostRun, wanted: ServePlan) -> Generator[StringCommand, None, None]:
    """What nobody needs any more now that all of them answer."""
    layout = run.layout()
    if wanted.doubt or wanted.keep:
        kept = [kept for _, kept in wanted.former.files] if wanted.former else []
        yield StringCommand("rm -f --", *map(QuoteString, (layout.previous, *kept)))
        run.reread()
    if wanted.outdated:
        folders = [QuoteString(layout.serve_libraries(name)) for name in wanted.outdated]
        yield StringCommand(*jobs.as_account(run), "rm -rf --one-file-system --", *folders)
        run.changed("older packages of the server removed")


def _ask_all(state: State, host: Host, run: HostRun, wanted: ServePlan, asked: _Asked) -> bool:
    run.reread()
    asked.problems = _problems(run, host, wanted.services)
    return True


def _problems(run: HostRun, host: Host, services: Iterable[Served]) -> dict[str, Problem]:
    told = ((one.config.profile, _ask(run, host, one)) for one in services)
    return {name: problem for name, problem in told if problem}


def _go_back(run: HostRun, wanted: ServePlan, asked: _Asked) -> Generator[PyinfraCommand]:
    """`current` points to the build of before, or its container's files are those of before, and
    the services run it."""
    layout, former = run.layout(), wanted.former
    if former:
        yield put_back(run, former)
    else:
        # By rename, so that there is no moment without one of both.
        yield StringCommand("mv -T", QuoteString(layout.previous), QuoteString(layout.current))
    yield from _start(run, wanted.services)
    run.changed(f"{'image' if former else 'current'} -> {wanted.back} (gone back)")
    kind = "image" if former else "build"

    def ask(state: State, host: Host) -> bool:
        asked.services = tuple(as_told(run, one) if former else one for one in wanted.services)
        asked.again = _problems(run, host, asked.services)
        found = "; ".join(problem.found for problem in asked.again.values())
        run.fail(
            Problem(
                "serving",
                found=f"services that failed on the new {kind}: went back to "
                f"{wanted.back}, {found or 'they serve again'}",
                expected=f"services that answer on the {MEANT[kind]}",
                next="read the reasons beside this one, then run the same command again",
            )
        )
        return True

    yield FunctionCommand(ask, (), {})


def _judge(state: State, host: Host, run: HostRun, wanted: ServePlan, asked: _Asked) -> bool:
    """Keep what is known of each service; the host fails where one does not serve."""
    for one in asked.services or wanted.services:
        name = one.config.profile
        problems = asked.problems if asked.again is None else asked.again
        run.served.append(_line(one, "FAILED" if name in problems else "ready"))
    for problem in asked.problems.values():
        run.fail(problem)
    left = None if asked.problems else _left(run)
    if left:
        run.fail(left)
    return not asked.problems and left is None


def _left(run: HostRun) -> Problem | None:
    """What the host, read again, still needs."""
    left = run.plan().serve
    if left is None or not (left.files.needed or left.gone or left.outdated or left.doubt):
        return None
    return Problem(
        "serving",
        found=f"still to do: {'; '.join(left.files.reasons) or ', '.join(left.gone)}",
        expected="services as planned, now that they were written and started",
        next="systemctl status 'llamafleet-serve@*'",
    )


def _ask(run: HostRun, host: Host, service: Served) -> Problem | None:
    """Wait until it is ready, and ask it; why it does not serve."""
    begun = heard = said = time.monotonic()
    name, refused = service.config.profile, 0
    while True:
        answer = host.get_fact(AnswerOfService, **_where(run, service))
        now = time.monotonic()
        heard = now if answer else heard
        if answer and answer.ok:
            return None
        # One that serves others just now may have no room for one more.
        refused += bool(answer and answer.state == "ready")
        if answer and (answer.state in ("held", "failed") or refused == TRIES):
            return _problem(run, host, service, answer.problem)
        if now - heard > PATIENCE_S:
            return _problem(run, host, service, f"no answer ({run.guard.cause or 'silence'})")
        if now - begun > service.load_minutes * 60:
            told = answer.problem if answer else "no answer"
            return _problem(run, host, service, f"{told} after {service.load_minutes} minutes")
        if _ended(run, host, service) and (not answer or answer.state is None):
            return _problem(run, host, service, "its process ended and left no word")
        if now - said > SAY_SECONDS:
            said = now
            run.say(f"{name}: {answer.problem if answer else 'no answer'}")
        lock.keep(run)
        time.sleep(POLL_SECONDS if now - begun > ASK_S else 1.0)


def _where(run: HostRun, service: Served) -> dict[str, object]:
    layout = run.layout()
    name = service.config.profile
    # Paths are the same there.
    inside = f"podman exec -i {service.container}" if service.container else ""
    return {
        "rights": inside or " ".join(jobs.as_account(run)),
        "python": f"{layout.current}/bin/python",
        "zipapp": layout.zipapp,
        "config": service.path,
        "key": layout.serve_key(name) if service.config.key else "/dev/null",
        "wait_s": ASK_S,
        "_timeout": ASK_LIMIT_S,
        "_ignore_errors": True,
    }


def _end(run: HostRun, host: Host, service: Served) -> End:
    """What systemd and the journal say of its unit."""
    end = host.get_fact(
        EndOfJob,
        unit=service.unit,
        systemctl=systemctl(run),
        log="/dev/null",
        rights="",
        since_s=600,
        _timeout=END_LIMIT_S,
        _ignore_errors=True,
    )
    return end or End()


def _ended(run: HostRun, host: Host, service: Served) -> bool:
    return _end(run, host, service).unit.get("Result", "success") not in ("", "success")


def _problem(run: HostRun, host: Host, service: Served, why: str) -> Problem:
    log = _end(run, host, service).log
    words = f"; its log: {' / '.join(log)}" if log and "found" not in why else ""
    user = "" if run.settings.scope == "system" else "--user "
    return Problem(
        f"serve.{service.config.profile}",
        found=f"{why}{words}",
        expected=f"{service.config.alias} at {service.config.address} port {service.config.port}",
        next=f"journalctl {user}-u {service.unit} -n 50",
    )


def _line(service: Served, state: str) -> ServedLine:
    told = service.config
    return ServedLine(told.profile, state, told.address, told.port, told.alias, told.model)
