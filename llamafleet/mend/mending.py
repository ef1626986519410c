"""Judge an environment, build, prove, install, prove again: one mending from end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llamafleet.facts.environment import NoAnswer, describe
from llamafleet.inventory import read_supplies
from llamafleet.mend.change import Change, Journal, changed
from llamafleet.mend.look import read_facts
from llamafleet.mend.work import Failed, Worker, verify_build, verify_in_place
from llamafleet.plans.make import make_plan
from llamafleet.plans.mend.judge import Facts, Finding, judge
from llamafleet.plans.mend.plan import Mending, missing, plan_mending, scheme_of
from llamafleet.plans.plan import Plan
from llamafleet.protocol.environment import Environment
from llamafleet.protocol.result import Result

TAKES_BACK = "llamafleet fix --yes, which takes it back first"

Judgement = tuple[Facts, tuple[Finding, ...], Mending]


def plan_of(work: Worker) -> Plan:
    """What a build on this machine would be."""
    name = work.snapshot.hostname or "this machine"
    supplies = read_supplies({name: work.settings})[name]
    return make_plan(name, work.settings, work.snapshot, work.here.layout, supplies=supplies)


def examine(work: Worker, environment: Environment, known: tuple[Finding, ...] = ()) -> Judgement:
    """What is wrong, beside what is known; it is verified where nothing else says so by itself.

    Raises NoAnswer.
    """
    facts = read_facts(work.here, environment, work.settings, work.snapshot, plan_of(work))
    if not any(finding.red for finding in (*known, *judge(facts))):
        try:
            facts = replace(
                facts, result=verify_in_place(work, facts, _site(facts), scheme_of(facts))
            )
        except Failed as problem:
            facts = replace(facts, unproven=str(problem))
    findings = (*known, *judge(facts))
    return facts, findings, plan_mending(facts, findings, work.settings.llama_version)


def _site(facts: Facts) -> str:
    """Folder that the environment's own copy lies in."""
    own = facts.own or facts.imported
    return own.folder.rpartition("/")[0] if own else facts.environment.site


@dataclass(frozen=True)
class Left:
    """A change that came to no end, and what it left."""

    change: Change
    journal: Journal
    mixed: str
    """Why what is there is no whole installation; "": it is one."""

    def finding(self, why: str, cure: str = "", *, red: bool = False) -> Finding:
        journal = self.journal
        what = f"a change of {journal.site} was cut off ({journal.old or 'none'} -> {journal.new})"
        return Finding("interrupted", red, what, why, cure)


def judge_now(work: Worker, environment: Environment, *, restore: bool) -> Judgement:
    """As `examine`, also where a change was cut off: what is there now counts.

    `restore` takes such a change back, or forgets it where what is there is right: somebody may
    have mended it by hand. Raises Failed, NoAnswer, OSError.
    """
    left = _left(work, environment)
    if not left:
        return examine(work, environment)
    half = tuple(
        one.finding(f"What is there now is half of each: {one.mixed}", TAKES_BACK, red=True)
        for one in left
        if one.mixed
    )
    if not (half and restore):
        judgement = examine(work, environment, half)
        red = any(finding.red for finding in judgement[1])
        if not (red and restore):
            return _with_hints(judgement, left, red=red, forget=restore)
    for one in left:
        one.change.restore(one.journal)
    back = tuple(one.finding("The old one is back") for one in left)
    return examine(work, describe(environment.executable, work.here.ask), back)


def _left(work: Worker, environment: Environment) -> list[Left]:
    sites = filter(None, (environment.site, environment.user_site))
    changes = [Change(work.here, site) for site in sites]
    return [
        Left(change, journal, change.mixed())
        for change in changes
        if (journal := change.unfinished())
    ]


def _with_hints(
    judgement: Judgement, left: Sequence[Left], *, red: bool, forget: bool
) -> Judgement:
    """With a note of each change that was cut off and left something whole."""
    facts, findings, mending = judgement
    hints = []
    for one in left:
        if forget:
            one.change.commit()
            hints.append(one.finding("What is there now is right, and its old files are removed"))
        elif not one.mixed:
            cure = TAKES_BACK if red else "llamafleet fix --yes, which removes the old one's files"
            hints.append(one.finding("What is there now is whole, and judged as it is", cure))
    return facts, (*findings, *hints), mending


def mend(work: Worker, facts: Facts, mending: Mending) -> Judgement:
    """Carry it out; what is found after it. Raises Failed, the old one being back then."""
    plan = facts.plan
    assert plan.build is not None
    _build(work, plan)
    needed = work.needs(plan.build.config.prefix)
    mending = replace(mending, adds=missing(facts.environment, needed))
    work.say(f"needs: {', '.join(needed)}; to be added: {', '.join(mending.adds or ()) or 'none'}")
    work.say("verify: the new build, by itself")
    proven = verify_build(work, plan)
    if not proven.good:
        raise Failed(f"the new build is not good, and nothing was changed: {_red(proven)}")
    change = Change(work.here, mending.site)
    try:
        wheel = change.take(work.pack(plan.build.config.prefix))
        work.say(f"install: {wheel.name}")
        journal = change.begin(facts.environment, mending, wheel)
    except OSError as problem:
        raise Failed(
            f"{problem}; expected to write below {work.here.layout.prefix}, and nothing was "
            "changed; next: df -h, ls -ld"
        ) from problem
    try:
        change.install(journal, wheel, work.settings)
        work.say("verify: in place")
        judgement = _after(work, facts, mending)
    except BaseException as problem:
        change.restore(journal)
        if isinstance(problem, Failed | NoAnswer | OSError):
            raise Failed(f"{problem}; the old one is back") from problem
        raise
    if any(f.red and f.kind != "shadowed" for f in judgement[1]):
        change.restore(journal)
        red = next(f for f in judgement[1] if f.red and f.kind != "shadowed")
        raise Failed(f"the new one is no better in place, and the old one is back: {red}")
    change.commit()
    return judgement


def _build(work: Worker, plan: Plan) -> None:
    """The toolkit that the plan lacks, and the build. Raises Failed."""
    if plan.toolkit and plan.toolkit.job and plan.toolkit.config:
        work.say(f"toolkit: {plan.toolkit.reason}")
        work.job(plan.toolkit.job, plan.toolkit.config)
    assert plan.build is not None
    if plan.build.job:
        work.say(f"build: {plan.build.config.jobs} jobs; log in {plan.build.job.folder}")
        work.job(plan.build.job, plan.build.config)
    else:
        work.say(f"build: {plan.build.reason}")


def _after(work: Worker, facts: Facts, mending: Mending) -> Judgement:
    """What is there now. Raises Failed where something else changed."""
    before = facts.environment
    environment = describe(before.executable, work.here.ask)
    others = changed(before.distributions, environment.distributions, mending.adds or ())
    if others:
        raise Failed(
            f"environment: found that more than one package changed ({'; '.join(others)}); "
            "expected that nothing else does; next: pip check"
        )
    judgement = examine(work, environment)
    seen = judgement[0]
    if seen.imported is not seen.own and seen.result is None:
        # What stands in front of it is not mended here; the new one is proven all the same.
        result = verify_in_place(work, seen, mending.site, mending.scheme)
        if not result.good:
            raise Failed(f"the new one is not good in place: {_red(result)}")
    return judgement


def _red(result: Result) -> str:
    lines = [f"{where + ': ' if where else ''}{check}" for where, check in result.red]
    return "; ".join(lines) or f"the verdict is {result.verdict}"
