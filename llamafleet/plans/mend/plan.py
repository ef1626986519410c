"""What is done to mend an environment, and what stands in the way: pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llamafleet.plans.mend.judge import MENDABLE, Facts, Finding
from llamafleet.plans.plan import Problem
from llamafleet.protocol.environment import PACKAGE, Environment
from llamafleet.protocol.result import Backend

Scheme = Literal["environment", "user site"]

OWN_PLACES = {True: "/opt/llama", False: "~/llama"}
"""Where somebody makes an environment of his own, by whether he is root: others must be able to
reach that of root, whose home is closed to them."""


@dataclass(frozen=True)
class Mending:
    """One environment's llama-cpp-python, built from source and put in the old one's place."""

    needed: bool
    reason: str
    site: str
    """Folder that it is installed into."""
    scheme: Scheme
    old: str
    """Version; "": there is none."""
    new: str
    backend: Backend
    cmake_args: tuple[str, ...] = ()
    toolkit: str = ""
    """The CUDA Toolkit that it is built with, in words; "": none."""
    adds: tuple[str, ...] | None = None
    """Packages that it needs and that are missing, by its own metadata; None: not known before it
    is built."""
    problems: tuple[Problem, ...] = ()
    """What stands in the way: nothing is done then."""

    @property
    def ready(self) -> bool:
        """There is something to do, and nothing in the way."""
        return self.needed and not self.problems


def plan_mending(facts: Facts, findings: Sequence[Finding], version: str) -> Mending:
    """What to do about the findings; `version` of llama-cpp-python is built."""
    environment, plan, own = facts.environment, facts.plan, facts.own
    wrong = [f for f in findings if f.red and _mendable(f)]
    elsewhere = own is None or (facts.imported is not None and facts.imported is not own)
    needed = bool(wrong) and not (elsewhere and not _own_fault(facts, wrong))
    scheme = scheme_of(facts)
    toolkit = plan.toolkit
    return Mending(
        needed=needed,
        reason=", ".join(dict.fromkeys(f.kind for f in wrong)) if needed else "nothing to build",
        site=environment.user_site if scheme == "user site" else environment.site,
        scheme=scheme,
        old=own.version if own else "",
        new=version,
        backend=plan.backend,
        cmake_args=plan.build.config.cmake_args if plan.build else (),
        toolkit=f"CUDA {toolkit.version} at {toolkit.root} ({toolkit.reason})" if toolkit else "",
        adds=missing(environment, own.requires) if needed and own and own.requires else None,
        problems=tuple([*place_problems(facts, scheme), *_build_problems(facts)]) if needed else (),
    )


def missing(environment: Environment, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the packages that the environment has not."""
    there = {one.name for one in environment.distributions}
    return tuple(name for name in names if name not in there)


def _mendable(finding: Finding) -> bool:
    """What somebody has to type does it, and no build."""
    return finding.kind in MENDABLE and (finding.kind == "verification" or not finding.next)


def _own_fault(facts: Facts, wrong: Sequence[Finding]) -> bool:
    """What is wrong is so of this environment's own copy, not of one that stands before it."""
    own = facts.own
    if own is None:
        return any(finding.kind == "absent" for finding in wrong)
    return any(f.kind == "incomplete" for f in wrong) or (facts.gpus and not own.cuda)


def scheme_of(facts: Facts) -> Scheme:
    """Where it goes: where the old one lies, and of none where pip would put it."""
    environment, own = facts.environment, facts.own
    if environment.virtual or environment.conda or not environment.user_site:
        return "environment"
    if own is not None:
        return "user site" if own.by == "user site" else "environment"
    return "environment" if facts.writable else "user site"


def place_problems(facts: Facts, scheme: Scheme) -> list[Problem]:
    """Why nothing may be put into this environment."""
    unwritable = scheme == "environment" and not facts.writable
    return _of_another(facts) or (_unwritable(facts) if unwritable else [])


def _of_another(facts: Facts) -> list[Problem]:
    """Another program keeps it, or its sources are somebody's work."""
    environment = facts.environment
    python = shlex.quote(environment.executable)
    own = OWN_PLACES[facts.machine.uid == 0]
    if environment.externally_managed:
        return [
            Problem(
                "environment",
                f"{environment.externally_managed}: this Python belongs to the distribution, whose "
                "packages alone may change it (PEP 668)",
                "an environment of your own",
                f"{python} -m venv {own} && llamafleet fix --venv {own} --yes",
            )
        ]
    if environment.conda_package:
        return [
            Problem(
                "environment",
                f"{environment.conda_package}: conda installed {PACKAGE} here",
                "one that conda does not keep: it would not know of the new one",
                f"conda remove --force {PACKAGE}, and llamafleet fix again",
            )
        ]
    if environment.editable:
        return [
            Problem(
                "environment",
                f"an editable installation of {environment.editable}, whose sources are yours",
                "one that is installed, as nothing is built in those sources here",
                f"build it there again, or uninstall {PACKAGE}, and llamafleet fix --python "
                f"{python} --yes",
            )
        ]
    return []


def _unwritable(facts: Facts) -> list[Problem]:
    environment = facts.environment
    if environment.owner == facts.machine.uid:
        return [
            Problem(
                "environment",
                f"{environment.site}, which its own user (uid {environment.owner}) can't write",
                "a file system and a folder that can be written",
                f"findmnt -T {shlex.quote(environment.site)}; ls -ld the same",
            )
        ]
    return [
        Problem(
            "environment",
            f"{environment.site}, which this user can't write (it is that of uid "
            f"{environment.owner})",
            "an environment that its own user mends",
            f"sudo -u '#{environment.owner}' llamafleet fix --python "
            f"{shlex.quote(environment.executable)}",
        )
    ]


def _build_problems(facts: Facts) -> list[Problem]:
    plan = facts.plan
    if plan.problems:
        return list(plan.problems)
    if plan.reboot:
        return [Problem("driver", plan.reboot.reason, "a driver that is loaded", "sudo reboot")]
    if plan.packages.names:
        # Installing packages is the distribution's and root's part.
        return [
            Problem(
                "compiler",
                plan.packages.reason,
                f"the packages {' '.join(plan.packages.names)}",
                f"install {' '.join(plan.packages.names)}",
            )
        ]
    return []


def explain(facts: Facts, findings: Sequence[Finding], mending: Mending) -> list[str]:
    """What a person reads."""
    lines = [f"{'WRONG' if f.red else 'note '} {f.kind}: {f}" for f in findings]
    if not any(finding.red for finding in findings):
        return [*lines, *_right(facts)]
    if not mending.needed:
        return [*lines, "plan: nothing that a build could mend: see what to type next above"]
    # Those of the machine stand among the findings.
    own = [problem for problem in mending.problems if problem not in facts.plan.problems]
    lines += [f"PROBLEM {problem}" for problem in own]
    if mending.problems:
        return lines
    old = mending.old or "none"
    same = " (the same version)" if old == mending.new else ""
    lines += [
        f"plan: build {PACKAGE} {mending.new} from source for the "
        f"{'GPU' if mending.backend == 'cuda' else 'CPU'}, in a folder of its own",
        *([f"  with {mending.toolkit}"] if mending.toolkit else []),
        f"  {' '.join(arg for arg in mending.cmake_args if 'CUDA' in arg)}",
        "  verify it there",
        f"  install that very wheel into {mending.site}: {old} -> {mending.new}{same}",
        _additions(mending),
        "  verify it in place; the old one comes back if that fails",
    ]
    return lines


def _additions(mending: Mending) -> str:
    if mending.adds is None:
        return "  add what it needs and this environment lacks, named once it is built"
    return f"  add {', '.join(mending.adds)}" if mending.adds else "  no other package changes"


def _right(facts: Facts) -> list[str]:
    copy = facts.own or facts.imported
    what = f"{PACKAGE} {copy.version} in {copy.folder}" if copy else PACKAGE
    verdict = facts.result.verdict if facts.result else ""
    if facts.gpus:
        return [f"right: {what} uses the GPU ({verdict})"]
    if facts.machine.gpus:
        return [f"right: {what} runs on the CPU, as accelerator = cpu asks ({verdict})"]
    return [f"right: {what} runs on the CPU, and there is no NVIDIA GPU here ({verdict})"]
