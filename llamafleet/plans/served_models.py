"""The models that a host serves: what must come, from where, and what may go.

A model is known by its content: profiles that name the same one share it, and one whose address has
changed is not brought again. One that no profile names any more stays while there is room, as many
as models_kept says, since it may be wanted again: it is removed by a later run, never by hand of a
plan that is not shown before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from llamafleet.facts.host import HostSnapshot, PlacedModel
from llamafleet.layout import Layout
from llamafleet.modelsource import ModelSource
from llamafleet.plans.network import plan_network
from llamafleet.plans.plan import ModelPlan, ModelsPlan, Problem, SentPart, account_job
from llamafleet.plans.supplies import LocalFile, Supplies
from llamafleet.protocol.job import ModelConfig
from llamafleet.protocol.place import ModelInputs, ModelPart, part_name, shown
from llamafleet.settings import Settings

RESERVE_MIB = 1024
"""What a model leaves free: jobs and results have yet to be written."""


def served(settings: Settings) -> dict[str, ModelSource]:
    """By profile."""
    return {name: profile.source for name, profile in settings.serve.items()}


def plan_models(
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    python: str,
    supplies: Supplies,
    besides_mib: int = 0,
) -> ModelsPlan | Problem | None:
    """What to bring and what to remove. None: nothing is served, and nothing is there.

    `python`: the interpreter of the job. `besides_mib`: what the rest of the plan needs on the same
    disk.
    """
    return of(
        served(settings),
        _Host(settings, snapshot, layout, python, supplies),
        besides_mib,
    )


def of(
    wanted: Mapping[str, ModelSource], host: _Host, besides_mib: int
) -> ModelsPlan | Problem | None:
    """The same for the models that these profiles name."""
    if not wanted and not host.snapshot.models:
        return None
    by_key: dict[str, list[str]] = {}
    for name, source in wanted.items():
        by_key.setdefault(host.key(source), []).append(name)
    for names in by_key.values():
        if problem := _differing({name: wanted[name] for name in names}):
            return problem
    models = tuple(
        host.plan(_fullest([wanted[name] for name in names]), tuple(names))
        for names in by_key.values()
    )
    used = {*by_key, *host.named(wanted.values())}
    left = [model for key, model in host.snapshot.models.items() if key not in used]
    rest = _Rest.of(left, host)
    need = sum(model.coming or 0 for model in models)
    room = _room(need + ((besides_mib + RESERVE_MIB) << 20) if need else 0, rest, host.snapshot)
    if isinstance(room, Problem):
        return room
    return ModelsPlan(
        host.python,
        models=models,
        room=room,
        discard=tuple(one.name for one in rest.go if one.name not in room),
        stay=tuple(one.name for one in rest.stay if one.name not in room),
        told=tuple(_told(rest, room, settings=host.settings)),
    )


def _differing(sources: Mapping[str, ModelSource]) -> Problem | None:
    """Profiles that name one file of the host and state another sha256 of it."""
    stated = {source.sha256: name for name, source in sources.items() if source.sha256}
    if len(stated) < 2:
        return None
    (first, one), (second, other) = list(stated.items())[:2]
    return Problem(
        f"serve.{one}.sha256",
        found=f"{' '.join(first)}, and serve.{other}.sha256 = {' '.join(second)} for the same file",
        expected="one sha256 of one file",
        next=f"sha256sum {sources[one].first} on the host",
    )


def _fullest(sources: Sequence[ModelSource]) -> ModelSource:
    """Of profiles that name one model the one that states the most of it."""
    return max(sources, key=lambda source: (bool(source.sha256), bool(source.sizes)))


@dataclass(frozen=True)
class _Host:
    """What the plan of each model is made of."""

    settings: Settings
    snapshot: HostSnapshot
    layout: Layout
    python: str
    supplies: Supplies

    def _local(self, source: ModelSource) -> tuple[LocalFile | None, ...]:
        return tuple(self.supplies.models.get(part) for part in source.parts)

    def _sha256(self, source: ModelSource) -> tuple[str, ...]:
        """Of each part, as stated or as the controller's files have it."""
        found = tuple(local.sha256 for local in self._local(source) if local)
        return source.sha256 or (found if len(found) == len(source.parts) else ())

    def key(self, source: ModelSource) -> str:
        return source.key(self._sha256(source))

    def named(self, sources: Iterable[ModelSource]) -> Iterator[str]:
        """Keys of models that were brought and are named by their place on the host."""
        for source in sources:
            place = PurePosixPath(source.first)
            if source.kind == "path" and place.is_relative_to(self.layout.gguf):
                yield place.relative_to(self.layout.gguf).parts[0]

    def sends(self, source: ModelSource) -> bool:
        """The host gets it from the controller."""
        fetched_here = source.kind == "url" and self.settings.model_source == "controller"
        return source.kind == "file" or fetched_here

    def plan(self, source: ModelSource, profiles: tuple[str, ...]) -> ModelPlan:
        key, sends = self.key(source), self.sends(source)
        there = self.snapshot.models.get(key)
        running = self.snapshot.job("model", key)
        config = self._config(source, key)
        action: Literal["bring", "attach", "none"] = "bring"
        why = _lacks(there, config, self.snapshot)
        if running and running.alive:
            action, why = "attach", "it is being brought already"
        elif not why:
            action, why = "none", "it is there, as it was proven"
        folder = f"{self.layout.gguf}/{key}"
        own = source.first if source.kind == "path" else ""
        job = account_job(
            "model",
            key,
            self.layout,
            python=self.python,
            minutes=self.settings.model_timeout_minutes,
            start=action == "bring",
        )
        return ModelPlan(
            profiles=profiles,
            path=own or f"{folder}/{part_name(0, len(source.parts))}",
            origin=source.first,
            action=action,
            reason=why,
            config=config,
            job=None if action == "none" else job,
            send=tuple(self._sent(source)) if sends and action == "bring" else (),
            coming=0 if own or action == "none" else _coming(config, there),
            product=there.product if there and action == "none" else None,
        )

    def _parts(self, source: ModelSource) -> Iterator[ModelPart]:
        sends, known = self.sends(source), self._sha256(source)
        local, count = self._local(source), len(source.parts)
        sizes = source.sizes or tuple(one.size if one else 0 for one in local)
        for number in range(count):
            place = source.parts[number]
            yield ModelPart(
                url=place if source.kind == "url" and not sends else "",
                path=place if source.kind == "path" else "",
                sha256=known[number] if known else "",
                size=sizes[number],
            )

    def _config(self, source: ModelSource, key: str) -> ModelConfig:
        network = plan_network(self.settings, self.snapshot, self.layout)
        parts = tuple(self._parts(source))
        return ModelConfig(
            key=key,
            inputs=ModelInputs(parts=tuple(part.path or part.sha256 for part in parts)),
            folder=f"{self.layout.gguf}/{key}",
            parts=parts,
            reserve_mib=RESERVE_MIB,
            proxies=network.proxies,
            ca_bundle=network.ca_bundle,
            netrc=network.netrc,
        )

    def _sent(self, source: ModelSource) -> Iterator[SentPart]:
        for number, part in enumerate(self._parts(source)):
            name = part_name(number, len(source.parts))
            yield SentPart(name, source.parts[number], part.sha256, part.size)


def _lacks(there: PlacedModel | None, config: ModelConfig, snapshot: HostSnapshot) -> str:
    """Why the model must be brought, or looked at again; "": it is there."""
    if there is None or not there.files:
        return "the host has none"
    if there.stamp is None or there.product is None:
        return "it is not whole"
    if there.stamp.machine_id not in ("", snapshot.machine_id):
        return "it was checked on another machine"
    if changed := there.changed:
        return changed
    stated = tuple(part.sha256 for part in config.parts)
    if any(stated) and tuple(file.sha256 for file in there.product.files) != stated:
        return "its sha256 was not compared"
    return ""


def _coming(config: ModelConfig, there: PlacedModel | None) -> int | None:
    """Bytes; None: not all sizes are known."""
    if not all(part.size for part in config.parts):
        return None
    return max(0, sum(part.size for part in config.parts) - (there.bytes if there else 0))


@dataclass(frozen=True)
class _Rest:
    """Models that no profile names, the oldest first."""

    go: tuple[PlacedModel, ...]
    stay: tuple[PlacedModel, ...]

    @classmethod
    def of(cls, models: Sequence[PlacedModel], host: _Host) -> _Rest:
        """Those that a job is at are left alone."""
        alive = {job.key for job in host.snapshot.jobs if job.kind == "model" and job.alive}
        still = sorted((one for one in models if one.name not in alive), key=_finished)
        whole = [one for one in still if not one.changed and not linked(one)]
        kept = whole[len(whole) - min(host.settings.models_kept, len(whole)) :]
        return cls(tuple(one for one in still if one not in kept), tuple(kept))


def linked(model: PlacedModel) -> bool:
    """It is a file that the host has: nothing of it is llamafleet's but a link."""
    parts = model.stamp.inputs.get("parts") if model.stamp else None
    return isinstance(parts, list | tuple) and any(str(part).startswith("/") for part in parts)


def _finished(model: PlacedModel) -> float:
    return model.stamp.finished if model.stamp else 0.0


def _room(need: int, rest: _Rest, snapshot: HostSnapshot) -> tuple[str, ...] | Problem:
    """Keys of what must go before anything comes: those that go anyway first, then kept ones."""
    free = snapshot.disk_free_mib.get("state", 0) << 20
    gone: list[str] = []
    for model in (*rest.go, *rest.stay):
        if free >= need:
            break
        if not linked(model):
            gone.append(model.name)
            free += model.bytes
    if free >= need:
        return tuple(gone)
    besides = f", {len(gone)} models that no profile names removed" if gone else ""
    return Problem(
        "disk",
        found=f"{free >> 20} MiB free for models that are served{besides}",
        expected=f"{-(-need >> 20)} MiB for what is still to come, beside what the rest needs",
        next="df -h on the host; free space there, or serve a smaller model",
    )


def _told(rest: _Rest, room: tuple[str, ...], *, settings: Settings) -> Iterator[str]:
    for model in (*rest.go, *rest.stay):
        named = f"{model.name} ({shown(model.bytes)})" if not linked(model) else model.name
        if linked(model):
            yield f"forget {named}: a file of the host that no profile names; it stays"
        elif model.name in room:
            yield f"remove {named} first: no profile names it, and there is no room beside it"
        elif model in rest.go:
            why = "was never whole" if model.changed else f"models_kept = {settings.models_kept}"
            yield f"remove {named} at the end, unless it is in use: no profile names it, {why}"
        else:
            yield f"keep {named}: no profile names it, models_kept = {settings.models_kept}"


def model_lines(plan: ModelsPlan | None) -> list[str]:
    """What will come, how large it is and from where; what goes."""
    lines: list[str] = []
    if plan is None:
        return lines
    for model in plan.models:
        line = f"model {model.key}: {model.action} for {', '.join(model.profiles)} ({model.reason})"
        lines.append(line)
        if model.action == "bring":
            lines.append(f"  {_way(model)}")
    return [*lines, *(f"model: {told}" for told in plan.told)]


def _way(model: ModelPlan) -> str:
    count = len(model.config.parts)
    parts = f", {count} parts" if count > 1 else ""
    if model.config.parts[0].path:
        return f"{model.origin}{parts}, which stays where it is, is looked at"
    size = "of a size that its server tells" if model.coming is None else shown(model.coming)
    if not model.send:
        return f"{size} from {model.origin}{parts}, fetched by the host"
    fetched = "" if model.origin.startswith("/") else ", fetched once by this machine"
    return f"{size} from {model.origin}{parts}{fetched}, sent over the host's connection"
