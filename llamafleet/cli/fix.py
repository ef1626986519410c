"""The command `llamafleet fix`: the llama-cpp-python of one environment, judged and mended."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llamafleet.cli.errors import BadInput
from llamafleet.cli.plan import looked_up, set_option, validated
from llamafleet.facts.environment import NoAnswer, Target, broken, candidates, describe
from llamafleet.terminal import masked_data, printable

# They bring pydantic's models and pyinfra with them, which no other command needs.
if TYPE_CHECKING:
    from llamafleet.mend.machine import Machine
    from llamafleet.mend.mending import Judgement
    from llamafleet.mend.work import Worker
    from llamafleet.plans.mend.judge import Facts, Finding
    from llamafleet.plans.mend.plan import Mending
    from llamafleet.protocol.environment import Environment

DECIDED = ("scope", "python")
"""Settings that the environment decides."""
OF_JUDGEMENT = ("findings", "environment", "copies", "mending", "result")
"""Of the answer as JSON; null where the environment could not be judged."""


@click.command()
@click.option("--venv", type=click.Path(path_type=Path), help="The environment's folder.")
@click.option("--python", metavar="PATH", help="Its interpreter, by path or by name on PATH.")
@click.option("-y", "--yes", is_flag=True, help="Mend it.")
@click.option("--check", is_flag=True, help="Judge it, and nothing more.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@set_option
@click.pass_context
def fix(
    context: click.Context,
    *,
    venv: Path | None,
    python: str | None,
    yes: bool,
    check: bool,
    as_json: bool,
    settings: dict[str, object],
) -> None:
    """Judge the llama-cpp-python of an environment on this machine, and mend it with --yes.

    Without --venv and --python it is that of $VIRTUAL_ENV, $CONDA_PREFIX, .venv or of the python3
    on PATH. It is built anew from source with the right flags, proven by itself, installed in the
    old one's place and proven there; the old one comes back if that fails. Nothing else in the
    environment changes. Exit code 0: it is right; 1: it is not, or was not mended; 2: bad input.
    """
    if yes and check:
        raise BadInput("found --yes and --check; expected one of them; next: leave one out")
    for key in DECIDED:
        if key in settings:
            raise BadInput(f"--set {key}: the environment decides it; next: leave it out")
    target = _target(venv, python)
    try:
        code = Fix(target, settings, as_json).run(yes=yes, check=check)
    except NoAnswer as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise BadInput(f"{error}; expected to write there; next: df -h, ls -ld") from error
    context.exit(code)


def _target(venv: Path | None, python: str | None) -> Target:
    """The interpreter that is meant. Raises BadInput."""
    if venv and python:
        raise BadInput("found --venv and --python; expected one of them; next: leave one out")
    if venv:
        named = venv.absolute() / "bin/python"
        if not named.is_file():
            raise BadInput(
                f"--venv {venv}: found no bin/python in it; expected an environment; "
                f"next: python3 -m venv {shlex.quote(str(venv))}"
            )
        return Target(str(named), "--venv")
    if python:
        path = shutil.which(python)
        if path is None:
            raise BadInput(f"--python {python}: found no program; expected an interpreter's path")
        return Target(str(Path(path).absolute()), "--python")
    if gone := broken(os.environ):
        raise BadInput(
            f"$VIRTUAL_ENV: found no bin/python that runs in {gone}; expected the active "
            "environment's; next: deactivate, make it anew, or llamafleet fix --python PATH"
        )
    found = candidates(os.environ, Path.cwd(), sys.prefix)
    if not found:
        raise BadInput("found no python3 on PATH; expected one; next: llamafleet fix --python PATH")
    (first, why), *rest = found
    return Target(first, why, tuple(rest))


@dataclass
class Fix:
    """One run of the command."""

    target: Target
    given: dict[str, object]
    as_json: bool

    def say(self, line: str) -> None:
        click.echo(printable(line), err=self.as_json)

    def run(self, *, yes: bool, check: bool) -> int:
        """The exit code. Raises NoAnswer, OSError."""
        from llamafleet.mend.machine import machine, make_folders
        from llamafleet.mend.rights import refuse_foreign_site, trusted, trusted_folder
        from llamafleet.onhost.job import locked

        root = os.geteuid() == 0
        if root:
            # What root makes here is for its account to read, and for nobody to write.
            os.umask(0o022)
            refuse_foreign_site(self.target.python)
        here = machine(os.geteuid(), Path.home(), dict(os.environ))
        self._reached(here)
        environment = describe(self.target.python, here.ask)
        if root:
            places = (environment.executable, environment.base_executable, environment.prefix)
            for path in places:
                trusted(path)
            for site in filter(None, (environment.site, environment.user_site)):
                trusted_folder(Path(site))
        self.say(f"environment: {environment.prefix} ({self.target.why})")
        for other, by in self.target.others:
            command = f"llamafleet fix --python {shlex.quote(other)}"
            self.say(f"  not looked at: {other} ({by}); next: {command}")
        Path(here.layout.prefix).mkdir(parents=True, exist_ok=True)
        with locked(Path(here.layout.prefix, "lock"), "fix") as holder:
            if holder:
                raise NoAnswer(
                    f"found another llamafleet fix ({holder}); expected one at a time; "
                    "next: run the same command again when it has ended"
                )
            make_folders(here)
            work = self._worker(here, environment)
            return self._work(work, environment, yes=yes, check=check)

    def _reached(self, here: Machine) -> None:
        """Root runs it with another user's rights, who must be able to. Raises NoAnswer."""
        python = self.target.python
        if here.account is not None and here.ask(["test", "-x", python], 10, None).status != 0:
            raise NoAnswer(
                f"rights: found {python}, which only root can reach; expected one that every user "
                "can run, as root gives up its rights before it does; next: make the environment "
                "elsewhere, as in /opt, or run the same command as a user"
            )

    def _worker(self, here: Machine, environment: Environment) -> Worker:
        """The machine is read. Raises NoAnswer, BadInput."""
        from llamafleet.mend.machine import read_machine
        from llamafleet.mend.work import Worker
        from llamafleet.protocol.models import FOR_CPU

        data: dict[str, object] = {"accelerator": "auto", "model": FOR_CPU, "busy_minutes": 0}
        if here.account is not None:
            # What root's account installs is removed again with it.
            data["toolkit_method"] = "present"
        # Without links, as a snapshot names interpreters.
        base = str(Path(environment.base_executable).resolve())
        data |= self.given | {"scope": "user", "python": base}
        settings, lines = looked_up(validated(data))
        for line in lines:
            self.say(line)
        return Worker(here, settings, read_machine(here, settings), self.as_json)

    def _work(self, work: Worker, environment: Environment, *, yes: bool, check: bool) -> int:
        from llamafleet.mend.mending import judge_now, mend
        from llamafleet.mend.work import Failed

        judged: Judgement | None = None
        failure = ""
        try:
            judged = judge_now(work, environment, restore=yes)
            if yes and judged[2].ready:
                self._explain(judged)
                judged = mend(work, judged[0], judged[2])
        except Failed as problem:
            failure = str(problem)
        except (NoAnswer, OSError) as problem:
            if judged is None:
                raise
            # It was judged, and being mended: no fault of what was given.
            failure = str(problem)
        self._tell(judged, failure)
        if judged and judged[2].ready and not yes and not check:
            self.say("next: the same command with --yes")
        if failure:
            self.say(f"FAILED {failure}")
        return 1 if failure or judged is None or any(f.red for f in judged[1]) else 0

    def _explain(self, judged: Judgement) -> None:
        from llamafleet.plans.mend.plan import explain

        for line in explain(*judged):
            self.say(line)

    def _tell(self, judged: Judgement | None, failure: str) -> None:
        """The answer; as JSON it is one object, whatever came of it."""
        if self.as_json:
            told = {
                "version": 1,
                "python": self.target.python,
                "chosen_by": self.target.why,
                "right": False,
                "failure": failure,
                **(self._judged(*judged, failure) if judged else dict.fromkeys(OF_JUDGEMENT)),
            }
            click.echo(json.dumps(masked_data(told), indent=1))
        elif judged and not failure:
            self._explain(judged)

    @staticmethod
    def _judged(
        facts: Facts, findings: tuple[Finding, ...], mending: Mending, failure: str
    ) -> dict[str, object]:
        return {
            "python": facts.environment.executable,
            "right": not failure and not any(finding.red for finding in findings),
            "findings": [asdict(finding) for finding in findings],
            "environment": asdict(facts.environment),
            "copies": [asdict(copy) for copy in facts.look.copies],
            "mending": asdict(mending),
            "result": asdict(facts.result) if facts.result else None,
        }
