"""Judge an environment, build, prove, install, prove again: one mending from end to end."""

from __future__ import annotations

from dataclasses import replace

from llamafleet.facts.environment import NoAnswer, describe
from llamafleet.inventory import read_supplies
from llamafleet.mend.change import Change, changed
from llamafleet.mend.look import read_facts
from llamafleet.mend.work import Failed, Worker, verify_build, verify_in_place
from llamafleet.plans.make import make_plan
from llamafleet.plans.mend.judge import Facts, Finding, judge
from llamafleet.plans.mend.plan import Mending, plan_mending, scheme_of
from llamafleet.plans.plan import Plan
from llamafleet.protocol.environment import Environment
from llamafleet.protocol.result import Result

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


def interrupted(work: Worker, environment: Environment, *, restore: bool) -> tuple[Finding, ...]:
    """Changes that were cut off, which `restore` takes back. Raises Failed."""
    told = []
    for site in filter(None, (environment.site, environment.user_site)):
        change = Change(work.here, site)
        if journal := change.unfinished():
            what = f"a change of {site} was cut off ({journal.old or 'none'} -> {journal.new})"
            if restore:
                change.restore(journal)
            why = "The old one is back" if restore else "What is there now may be half of each"
            cure = "" if restore else "llamafleet fix --yes, which takes it back first"
            told.append(Finding("interrupted", not restore, what, why, cure))
    return tuple(told)


def mend(work: Worker, facts: Facts, mending: Mending) -> Judgement:
    """Carry it out; what is found after it. Raises Failed, the old one being back then."""
    plan = facts.plan
    assert plan.build is not None
    _build(work, plan)
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
    others = changed(before.distributions, environment.distributions, mending.adds)
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
