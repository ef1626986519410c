"""Two releases: what the newer one changed, and whether this project uses it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from llamafleet.upstream import c
from llamafleet.upstream.cmake import is_option
from llamafleet.upstream.source import Source
from llamafleet.upstream.used import Used, recognised

_LONGEST = 160
"""Characters of a declaration or a text that a line quotes."""


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was."""

    ours: bool
    """This project uses it: somebody must look."""
    text: str


def compare(old: Source, new: Source, used: Used) -> list[Change]:
    """What this project uses first."""
    found = [
        *_options(old, new, used),
        *_needs(old, new),
        *_names(old, new, used),
        *_fields(old, new, used),
        *_bindings(old, new, used),
        *_words(old, new),
    ]
    return sorted(found, key=lambda change: not change.ours)


def _options(old: Source, new: Source, used: Used) -> Iterator[Change]:
    for name, verb, was, now in _differing(old.options, new.options):
        # A plan sets its own by name, whatever the default is; what a file sets asks nobody.
        if name in used.options and is_option(was) and not (now and is_option(now)):
            yield Change(True, f"option {name}: gone, default {_cut(was)}")
        elif verb == "changed":
            yield Change(False, f"option {name}: default {_cut(was)} -> {_cut(now)}")
        else:
            yield Change(False, f"option {name}: {verb}, default {_cut(now or was)}")


def _needs(old: Source, new: Source) -> Iterator[Change]:
    """Each of them: what is installed on a host is pinned here."""
    for name, _, was, now in _differing(old.needs, new.needs):
        yield Change(True, f"needs: {name}: {_cut(was)} -> {_cut(now)}")


def _names(old: Source, new: Source, used: Used) -> Iterator[Change]:
    """What the code on a host names, in the headers and in the bindings."""
    kinds = (
        ("header", old.declared, new.declared),
        ("binding", old.functions, new.functions),
        ("constant", old.constants, new.constants),
    )
    for kind, before, after in kinds:
        for name, verb, was, now in _differing(before, after, used.names):
            if verb == "changed":
                yield Change(True, f"{kind} {name}: {_change(was, now)}")
            else:
                yield Change(verb == "gone", f"{kind} {name}: {verb}")


def _fields(old: Source, new: Source, used: Used) -> Iterator[Change]:
    """Of the bindings' structures, those that the code on a host reads or sets."""
    for structure, before in old.structures.items():
        after = new.structures.get(structure)
        if after is None:
            mine = sorted(used.attributes & set(before))
            yield Change(bool(mine), f"structure {structure}: gone, of which are used: {mine}")
            continue
        for name, verb, was, now in _differing(before, after):
            what = f"{was} -> {now}" if verb == "changed" else verb
            ours = name in used.attributes and verb != "new"
            yield Change(ours, f"field {structure}.{name}: {what}")


def _bindings(old: Source, new: Source, used: Used) -> Iterator[Change]:
    """Structures of the bindings that are not the header's: a field would be read elsewhere."""
    before = dict(_strayed(old))
    for structure, text in _strayed(new):
        if structure not in before:
            touched = used.attributes & set(new.structures[structure])
            yield Change(bool(touched), f"structure {structure}: {text}")


def _strayed(source: Source) -> Iterator[tuple[str, str]]:
    for structure, bound in source.structures.items():
        body = source.declared.get(structure)
        if body is None:
            continue
        there = c.fields(body)
        count = sum(one == other for one, other in zip(there, bound, strict=False))
        if len(there) != len(bound):
            yield structure, f"{len(bound)} fields are bound, the header has {len(there)}"
        elif count != len(there) and sorted(there) == sorted(bound):
            yield structure, "its fields are bound in another order than the header's"


def _words(old: Source, new: Source) -> Iterator[Change]:
    """What is looked for in logs, and was said by the older one."""
    before, after = recognised(old.texts), recognised(new.texts)
    for name, found in before.items():
        for groups, text in found.items():
            if groups not in after.get(name, {}):
                what = f" ({', '.join(groups)})" if groups else ""
                yield Change(True, f"words of {name}{what}: gone, as {_cut(text.strip())!r}")


def _differing(
    old: Mapping[str, str], new: Mapping[str, str], names: Collection[str] | None = None
) -> Iterator[tuple[str, str, str, str]]:
    """(name, new, gone or changed, what it was, what it is)."""
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was == now or (names is not None and name not in names):
            continue
        verb = "new" if was is None else "gone" if now is None else "changed"
        yield name, verb, was or "", now or ""


def _change(was: str, now: str) -> str:
    """The parts that differ, where both have many."""
    before, after = was.split("; "), now.split("; ")
    if len(before) < 2 and len(after) < 2:
        return f"{_cut(was)} -> {_cut(now)}"
    gone = [part for part in before if part not in after]
    come = [part for part in after if part not in before]
    told = [*(f"- {part}" for part in gone), *(f"+ {part}" for part in come)]
    return _cut("; ".join(told) or "the same parts in another order")


def _cut(text: str) -> str:
    text = " ".join(text.split()) or "none"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
