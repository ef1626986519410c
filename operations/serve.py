"""The services of a host: told what to serve, started, asked for a token, and gone back from."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable

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
from operations.build import point, report_failure
from operations.container import bring_image
from operations.files import put, switch_units, systemctl
from operations.run import HostRun, here
from operations.watch import END_LIMIT_S, POLL_SECONDS, SAY_SECONDS, End, EndOfJob

ASK_S = 10
"""How long one question waits on the host until the service is ready."""
ASK_LIMIT_S = 90
"""For one question: beside that the token, which may wait behind a long prompt."""


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

    A service whose settings, key, code or build changed is drained and started again. Where one
    does not answer after a switch of the build, the host goes back to the build of before.

    **Example:**

    .. code:: python

        from operations.serve import serve
        serve(name="Serve")
    """
    run = here()
    wanted = run.plan().serve
    if wanted is None:
        run.noop("nothing is served")
        return
    if not wanted.needed:
        run.served = [_line(one, "ready") for one in wanted.services]
        run.noop(f"serves {', '.join(one.config.profile for one in wanted.services)}")
        return
    yield from bring_image(run)
    yield from put(run, wanted.files.write)
    yield from _remove(run, wanted)
    yield from switch_units(run, wanted.files)
    yield from _start(run, wanted.changed)
    for name in wanted.gone:
        run.changed(f"{name} no longer served")
    yield FunctionCommand(_judge, (run, wanted), {})


def _remove(run: HostRun, wanted: ServePlan) -> Generator[StringCommand, None, None]:
    """Stop what is not wanted any more, or is to be changed, and forget what it said."""
    names = [*wanted.gone, *(one.config.profile for one in wanted.changed)]
    if names:
        units = map(serve_unit, names)
        yield StringCommand(systemctl(run), "stop", *units, "2>/dev/null || true", _timeout=900)
    layout, rights = run.layout(), jobs.as_account(run)
    if wanted.gone:
        folders = [QuoteString(layout.serve_state(name)) for name in wanted.gone]
        yield StringCommand(*rights, "rm -rf --one-file-system --", *folders)
    if wanted.changed:
        folders = [QuoteString(one.config.folder) for one in wanted.changed]
        told = [QuoteString(f"{one.config.folder}/{STATUS}") for one in wanted.changed]
        yield StringCommand(*rights, "mkdir -p --", *folders)
        yield StringCommand(*rights, "rm -f --", *told)


def _start(run: HostRun, services: Iterable[Served]) -> Generator[StringCommand, None, None]:
    for one in services:
        yield StringCommand(systemctl(run), "restart --no-block", one.unit)
        verb = "started" if one.action == "start" else "restarted"
        run.changed(f"{one.config.profile} {verb} ({one.reason})")


def _judge(state: State, host: Host, run: HostRun, wanted: ServePlan) -> bool:
    """Ask each service; after a switch of the build one that fails takes all of them back."""
    run.reread()
    problems = [_ask(run, host, one) for one in wanted.services]
    failed = [problem for problem in problems if problem]
    if failed and run.before:
        _go_back(run, host, wanted)
    run.served = [
        _line(one, "FAILED" if problem else "ready")
        for one, problem in zip(wanted.services, problems, strict=True)
    ]
    for problem in failed:
        run.fail(problem)
    if not failed and wanted.outdated:
        _forget_packages(run, host, wanted)
    left = run.plan().serve if not failed else None
    if left is not None and (left.files.needed or left.gone or left.outdated):
        run.fail(
            Problem(
                "serving",
                found=f"still to do: {'; '.join(left.files.reasons) or ', '.join(left.gone)}",
                expected="services as planned, now that they were written and started",
                next="systemctl status 'llamafleet-serve@*'",
            )
        )
        return False
    return not failed


def _forget_packages(run: HostRun, host: Host, wanted: ServePlan) -> None:
    """Of servers that no service runs any more."""
    folders = [QuoteString(run.layout().serve_libraries(name)) for name in wanted.outdated]
    command = StringCommand(*jobs.as_account(run), "rm -rf --one-file-system --", *folders)
    host.run_shell_command(command, print_output=False)
    run.changed("older packages of the server removed")


def _go_back(run: HostRun, host: Host, wanted: ServePlan) -> None:
    """`current` points to the build of before, and the services run it."""
    before, run.before = run.before, ""
    units = [one.unit for one in wanted.services]
    commands = [
        *point(run.layout(), before),
        StringCommand(systemctl(run), "stop", *units, "|| true"),
        StringCommand(systemctl(run), "restart --no-block", *units),
    ]
    ok = all(host.run_shell_command(one, print_output=False)[0] for one in commands)
    run.changed(f"current -> {before} (gone back)")
    still = [problem for one in wanted.services if (problem := _ask(run, host, one))] if ok else []
    found = "; ".join(problem.found for problem in still)
    ended = found or ("it serves again" if ok else "it could not be switched to")
    run.fail(
        Problem(
            "serving",
            found=f"services that failed on the new build: went back to {before}, {ended}",
            expected="services that answer on the build that was proven",
            next="read the reasons beside this one, then run the same command again",
        )
    )


def _ask(run: HostRun, host: Host, service: Served) -> Problem | None:
    """Wait until it is ready, and ask it; why it does not serve."""
    begun = heard = said = time.monotonic()
    name = service.config.profile
    while True:
        answer = host.get_fact(AnswerOfService, **_where(run, service))
        now = time.monotonic()
        heard = now if answer else heard
        if answer and answer.ok:
            return None
        if answer and answer.state not in (None, "loading", "draining"):
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
    container = run.plan().container
    # Paths are the same there.
    inside = f"podman exec -i {container.name}" if container else ""
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
