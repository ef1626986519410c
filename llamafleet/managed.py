"""Every file, folder and unit that llamafleet puts on a host, one row each.

By these rows a host's files are rendered, compared, written and removed, its units enabled and
started, and both looked for by the snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llamafleet.layout import (
    APT_CREDENTIALS,
    APT_KEY,
    APT_PIN,
    APT_SOURCE,
    CDI_FILE,
    DEVICES_UNIT,
    DNF_KEY,
    DNF_SOURCE,
    DRIVER_CHECK_PATH,
    DRIVER_CHECK_UNIT,
    HOLD_APT,
    METRICS_PATH,
    METRICS_UNIT,
    SERVE_TARGET,
    SERVE_TEMPLATE,
    USER,
    VERIFY_TIMER,
    VERIFY_UNIT,
    Layout,
    Scope,
    quadlet,
    serve_unit,
)

Group = Literal["tools", "settings", "hold", "serve"]
"""The operation that writes a file."""

Condition = Literal["cuda", "schedule", "hold", "apt", "netrc", "venv", "metrics"]
"""What must hold of a host and its settings for a file to be wanted there: CUDA's backend, a
schedule of verifications, packages that llamafleet holds, apt, passwords of an index or mirror,
a build on the host itself, a folder that node_exporter reads."""

UnitState = Literal["loaded", "enabled", "active"]
"""loaded: systemd has it; enabled: each boot starts it as well; active: it also runs by now."""


@dataclass(frozen=True)
class Access:
    """Whose a file or folder is, and who may do what."""

    user: str
    """"": of whoever deploys, with the group that comes with it."""
    group: str
    mode: int


def access(layout: Layout, *, secret: bool = False) -> Access:
    """Of a file that llamafleet writes: no account but the writer's may change it."""
    if layout.scope == "user":
        return Access("", "", 0o600 if secret else 0o644)
    return Access("root", USER, 0o640) if secret else Access("root", "root", 0o644)


@dataclass(frozen=True)
class Managed:
    """One file, or one unit of systemd and its file."""

    path: Callable[[Layout], str]
    group: Group | None
    """None: a job on the host writes it."""
    source: str = ""
    """What render makes its content from: a template, or a name of its own."""
    needs: frozenset[Condition] = frozenset()
    """It is wanted where all of them hold, and unwanted elsewhere."""
    scopes: tuple[Scope, ...] = ("system", "user")
    unit: str = ""
    """The unit's name, for one."""
    state: UnitState = "loaded"
    """What is wanted of the unit."""
    secret: bool = False
    """Only root writes it and only the account, beside root, reads it."""
    private: bool = False
    """Only who writes it reads it: the manager of the services hands it on."""
    profile: str = ""
    """The served profile that it belongs to."""

    def access(self, layout: Layout) -> Access:
        """Whose it is to be."""
        if self.private:
            owner = "root" if layout.scope == "system" else ""
            return Access(owner, owner, 0o600)
        return access(layout, secret=self.secret)

    def leftovers(self, layout: Layout) -> tuple[str, ...]:
        """What systemd keeps for a unit: the time of a persistent timer's last run."""
        timer = self.unit.endswith(".timer")
        return (f"{layout.timer_stamps}/stamp-{self.unit}",) if timer else ()


def _unit(
    name: str,
    state: UnitState,
    *needs: Condition,
    scopes: tuple[Scope, ...] = ("system", "user"),
    group: Group = "settings",
) -> Managed:
    return Managed(
        lambda at: f"{at.units}/{name}",
        group,
        f"{name}.j2",
        frozenset(needs),
        scopes,
        unit=name,
        state=state,
    )


def _of_root(
    path: Callable[[Layout], str], group: Group | None, source: str = "", *needs: Condition
) -> Managed:
    return Managed(path, group, source, frozenset(needs), scopes=("system",))


CATALOGUE = (
    Managed(lambda at: at.zipapp, "tools", "zipapp"),
    Managed(lambda at: at.pip, "tools", "pip"),
    Managed(lambda at: at.netrc, "tools", "netrc", frozenset({"netrc"}), secret=True),
    Managed(lambda at: at.env, "settings", "llamafleet.env.j2", frozenset({"venv"})),
    Managed(lambda at: at.verify_config, "settings", "verify.json", frozenset({"venv"})),
    _unit(DEVICES_UNIT, "loaded", "cuda", scopes=("system",)),
    _unit(VERIFY_UNIT, "loaded", "venv"),
    _unit(VERIFY_TIMER, "active", "schedule", "venv"),
    _unit(DRIVER_CHECK_UNIT, "enabled", "cuda", "venv"),
    _unit(DRIVER_CHECK_PATH, "active", "cuda", "venv"),
    _unit(METRICS_UNIT, "enabled", "metrics", "venv"),
    _unit(METRICS_PATH, "active", "metrics", "venv"),
    _unit(SERVE_TARGET, "active", group="serve"),
    _of_root(lambda at: at.hold_record, "hold", "held-packages.j2", "hold"),
    _of_root(lambda at: HOLD_APT, "hold", "52llamafleet-hold-driver.j2", "hold", "apt"),
    _of_root(lambda at: at.installed_packages, None),
    _of_root(lambda at: at.images, None),
    _of_root(lambda at: CDI_FILE, None),
    _of_root(lambda at: APT_SOURCE, None),
    _of_root(lambda at: APT_PIN, None),
    _of_root(lambda at: APT_KEY, None),
    _of_root(lambda at: APT_CREDENTIALS, None),
    _of_root(lambda at: DNF_SOURCE, None),
    _of_root(lambda at: DNF_KEY, None),
)


def rows(layout: Layout, group: Group | None = None) -> tuple[Managed, ...]:
    """Those of the layout's scope, of one group or of all."""
    return tuple(
        row for row in CATALOGUE if layout.scope in row.scopes and group in (None, row.group)
    )


def profile_rows(profile: str) -> tuple[Managed, ...]:
    """The files and the unit of one served profile; the key is wanted where it has one."""
    unit = serve_unit(profile)
    return (
        Managed(lambda at: at.serve_config(profile), "serve", SERVE_CONFIG, profile=profile),
        Managed(
            lambda at: at.serve_key(profile), "serve", SERVE_KEY, private=True, profile=profile
        ),
        Managed(
            lambda at: f"{at.units}/{unit}",
            "serve",
            f"{SERVE_TEMPLATE}.j2",
            unit=unit,
            state="enabled",
            profile=profile,
        ),
    )


def container_row(profile: str) -> Managed:
    """The file of the container that serves a profile, in place of a unit of its own."""
    return Managed(
        lambda at: quadlet(profile),
        "serve",
        QUADLET,
        scopes=("system",),
        unit=serve_unit(profile),
        profile=profile,
    )


def former_rows(profile: str) -> tuple[Managed, ...]:
    """Copies of the files of a container that served, while it may be gone back to."""
    paths: tuple[Callable[[Layout], str], ...] = (
        lambda at: at.former_config(profile),
        lambda at: at.former_container(profile),
    )
    return tuple(Managed(path, None, scopes=("system",), profile=profile) for path in paths)


def all_rows(profile: str) -> tuple[Managed, ...]:
    """All that there may be of a profile, however it is served."""
    return (*profile_rows(profile), container_row(profile), *former_rows(profile))


QUADLET = "llamafleet-serve@.container.j2"
SERVE_CONFIG, SERVE_KEY = "serve.json", "api-key"
"""Sources of a profile's files."""


def by_path(layout: Layout) -> dict[str, Managed]:
    """The rows of the layout's scope, by where their files lie."""
    return {row.path(layout): row for row in rows(layout)}


@dataclass(frozen=True)
class Folder:
    """A folder that is there while llamafleet is."""

    path: str
    account: bool = False
    """It is given to the account, in scope system: root never enters it again."""
    below: bool = False
    """It lies in a folder of the account, which makes it by itself."""

    def access(self, layout: Layout) -> Access:
        if layout.scope == "user":
            return Access("", "", 0o755)
        owner = USER if self.account or self.below else "root"
        return Access(owner, owner, 0o755)


STATE_FOLDERS = (
    *("build", "toolkit", "libraries", "model", "verify", "results", "models", "tmp", "cache"),
    *("serve", "gguf"),
)
"""Below the state folder."""


def folder_rows(layout: Layout) -> tuple[Folder, ...]:
    """Parents first. Those of the account lie in folders of root."""
    return (
        Folder(layout.prefix),
        Folder(layout.etc),
        Folder(layout.configs),
        Folder(layout.jobs_of_root),
        Folder(layout.state, account=True),
        Folder(layout.versions, account=True),
        Folder(layout.toolkits, account=True),
        Folder(layout.servers, account=True),
        *(Folder(f"{layout.state}/{name}", below=True) for name in STATE_FOLDERS),
    )


def roots(layout: Layout) -> tuple[str, ...]:
    """The folders that hold all others."""
    return (layout.prefix, layout.etc, layout.state)


def unfinished(path: str) -> str:
    """Where a file or folder is made until it is whole."""
    return f"{path}.partial"


def mutex(path: str) -> str:
    """The empty file that is locked while `path` is changed; it stays."""
    return f"{path}.lock"


def partials(layout: Layout) -> tuple[str, ...]:
    """What a run that was cut off may have left outside llamafleet's own folders, or in them."""
    whole = (*by_path(layout), *roots(layout), layout.wheelhouse)
    return tuple(map(unfinished, whole))


def folders(layout: Layout) -> tuple[str, ...]:
    """Paths whose owner and mode the snapshot tells, beside those of the managed files."""
    others = (layout.wheelhouse, layout.shared, layout.made, layout.current)
    return (*(row.path for row in folder_rows(layout)), *others, *partials(layout))


def unit_names() -> tuple[str, ...]:
    """Units of any scope."""
    return tuple(row.unit for row in CATALOGUE if row.unit)
