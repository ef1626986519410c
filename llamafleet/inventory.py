"""A fleet's inventory data -> Settings: all errors of all hosts at once, before any is touched."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from pyinfra.api.arguments import all_argument_meta
from pyinfra.api.connectors import get_all_connectors

from llamafleet import modelstore
from llamafleet.onhost.toolkit.openpgp import fingerprints
from llamafleet.plans.served_models import served
from llamafleet.plans.supplies import LocalFile, Supplies
from llamafleet.protocol.options import OWN, READ_UNDECLARED
from llamafleet.protocol.redact import redacted
from llamafleet.serving import Bounds, Profile, clash
from llamafleet.settings import SECRETIVE, UNQUOTABLE, Settings
from llamafleet.supplied import api_key, credentials, small_file
from llamafleet.tables.cpu_baselines import NATIVE, OPTIONS
from llamafleet.tables.releases import Release, having, release, releases
from llamafleet.terminal import conceal, printable, secrets_of
from llamafleet.wheelhouse import manifest as house

OWN_PREFIX = "x_"
"""Keys of host data that begin so are the user's own and are not looked at."""

# Connectors also set these from a host's name; they are in no connector's data_meta.
CONNECTOR_KEYS = {"chroot_directory", "docker_image"}

_PLACES = "leaving it out (a library that lies elsewhere is neither found nor verified)"
_TOOLS = "the settings toolkit_root and host_compiler, which decide it"
_COMMIT = "leaving it out (the commit is written into the library, so no git may be asked)"

_CACHE = "the setting compiler_cache, which decides it"

_REFUSED_OPTIONS = {
    "LLAMA_CUBLAS": 'accelerator = "cuda" (CMake ends in FATAL_ERROR: it became GGML_CUDA)',
    "LLAMA_CUDA": 'accelerator = "cuda" (deprecated: it became GGML_CUDA)',
    "GGML_CUDA": "the setting accelerator, which decides it",
    "CMAKE_CUDA_ARCHITECTURES": "the setting compute_capabilities, which decides it",
    "CMAKE_CUDA_COMPILER": "the setting toolkit_root, which decides it",
    "CUDATOOLKIT_ROOT": "the setting toolkit_root, which decides it",
    "CMAKE_CUDA_COMPILER_FORCED": "the setting compiler_forced, which decides it",
    "CMAKE_CUDA_HOST_COMPILER": "the setting host_compiler, which decides it",
    "CMAKE_CXX_COMPILER": "the setting host_compiler, which decides it",
    "CMAKE_C_COMPILER": "the setting host_compiler, which decides it",
    "CMAKE_TOOLCHAIN_FILE": _TOOLS,
    "CMAKE_SYSROOT": _TOOLS,
    "CMAKE_PREFIX_PATH": _TOOLS,
    "CMAKE_PLATFORM_NO_VERSIONED_SONAME": _PLACES,
    "CMAKE_STAGING_PREFIX": _PLACES,
    "BUILD_SHARED_LIBS": _PLACES,
    "GIT_EXE": _COMMIT,
    "GIT_EXECUTABLE": _COMMIT,
    "CMAKE_SHARED_LINKER_FLAGS": "leaving it out (it holds the toolkit's run-time search path)",
    "CMAKE_BUILD_TYPE": "leaving it out (the build backend takes none: it is Release)",
    "GGML_CCACHE": _CACHE,
    "CMAKE_SHARED_LINKER_FLAGS_RELEASE": _PLACES,
    "GGML_BACKEND_DL": "leaving it out (a backend that can't be loaded is a silent CPU fallback)",
}
"""Options that an inventory may not set, by upper-case name, and what to use in their place."""

_REFUSED_KINDS = (
    (re.compile("CMAKE_INSTALL_.*|.*RPATH.*|.*_OUTPUT_DIRECTORY"), _PLACES),
    (re.compile("CMAKE_FIND_ROOT_PATH.*"), _TOOLS),
    (re.compile("CMAKE_.*_LAUNCHER|RULE_LAUNCH_.*"), _CACHE),
    (
        re.compile(".*(PASSWORD|PASSWD|SECRET|CREDENTIAL|API_?KEY|ACCESS_?KEY).*|(.*_)?TOKEN"),
        "no secret: options are in logs and results, and readable on the host",
    ),
)
"""The same by patterns of whole names."""

LONGEST = 100
"""Characters of a value or a name that an error quotes."""
MOST_OPTIONS = 30_000
"""Characters of all options together. Linux takes 131,072 bytes in one variable."""


class SettingsError(Exception):
    """Inventory data that can't be used; `lines` has one line for each error of each host."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


Finding = tuple[str, str, str]
"""(key, what was found, what is allowed)."""


def validate_fleet(data_by_host: Mapping[str, Mapping[str, object]]) -> dict[str, Settings]:
    """The settings of every host from pyinfra's flat host data.

    Raises SettingsError with all errors of all hosts, in the order of the hosts.
    """
    fleet: dict[str, Settings] = {}
    lines: list[str] = []
    # One wheelhouse serves many hosts; its files are read once for all of them.
    problems: dict[str, list[str]] = {}
    for data in data_by_host.values():
        conceal(secrets_of(data))
    for host, data in data_by_host.items():
        settings, findings = _validate(data)
        findings += [*_option_findings(settings), *_contradictions(settings)]
        findings += [*_shared_code(settings), *_serve_findings(settings)]
        findings += _model_findings(settings)
        if settings.wheelhouse is not None:
            if settings.wheelhouse not in problems:
                problems[settings.wheelhouse] = house.verify(Path(settings.wheelhouse))
            findings += _wheelhouse_findings(
                settings, Path(settings.wheelhouse), problems[settings.wheelhouse]
            )
        lines += _lines(host, findings)
        fleet[host] = settings
    if lines:
        raise SettingsError(lines)
    return fleet


REMOVAL = ("scope",)
"""The settings on which a removal depends."""


def validate_removal(data_by_host: Mapping[str, Mapping[str, object]]) -> dict[str, Settings]:
    """As `validate_fleet`, of what a removal depends on alone.

    A release that is no longer built, or a file of the controller that is gone, keeps nobody from
    removing. A key that nobody knows may be a mistyped one of REMOVAL, and is refused.
    """
    fleet: dict[str, Settings] = {}
    lines: list[str] = []
    for host, data in data_by_host.items():
        conceal(secrets_of(data))
        settings, findings = _validate(
            {key: value for key, value in data.items() if _counts(str(key))}
        )
        lines += _lines(host, findings)
        fleet[host] = settings
    if lines:
        raise SettingsError(lines)
    return fleet


def _counts(key: str) -> bool:
    """For a removal."""
    return key in REMOVAL or key not in Settings.model_fields


def _lines(host: str, findings: Iterable[Finding]) -> list[str]:
    return [
        printable(f"host {host}: {key}: found {found}, allowed: {allowed}")
        for key, found, allowed in findings
    ]


def read_supplies(fleet: Mapping[str, Settings]) -> dict[str, Supplies]:
    """What the sound settings of each host name on the controller; each is read once for all."""
    folders = {one.wheelhouse for one in fleet.values() if one.wheelhouse}
    files = {one.toolkit_key for one in fleet.values() if one.toolkit_key}
    houses = {folder: house.read(Path(folder)) for folder in folders}
    logins = {one.netrc: credentials(Path(one.netrc)) for one in fleet.values() if one.netrc}
    conceal(line.split()[-1] for text in logins.values() for line in text.splitlines())
    models = _models(fleet)
    key_files = {
        profile.api_key_file
        for one in fleet.values()
        for profile in one.serve.values()
        if profile.api_key_file
    }
    api_keys = {file: api_key(Path(file)) for file in key_files}
    conceal(api_keys.values())
    keys = {file: small_file(Path(file)).decode("ascii") for file in files}
    return {
        host: Supplies(
            wheelhouse=houses[one.wheelhouse] if one.wheelhouse else None,
            toolkit_key=keys[one.toolkit_key] if one.toolkit_key else None,
            netrc=logins[one.netrc] if one.netrc else None,
            models=models,
            serve_keys={
                name: api_keys[profile.api_key_file]
                for name, profile in one.serve.items()
                if profile.api_key_file
            },
        )
        for host, one in fleet.items()
    }


def _models(fleet: Mapping[str, Settings]) -> dict[str, LocalFile]:
    """Parts of served models that this machine has; each is read once for all hosts."""
    sources = {source for one in fleet.values() for source in served(one).values()}
    store, found = modelstore.ModelStore(), dict[str, LocalFile]()
    for source in sorted(sources, key=lambda source: source.parts):
        found |= store.supplied(source, lambda text: click.echo(printable(text), err=True))
    return found


def _model_findings(settings: Settings) -> Iterator[Finding]:
    """Files of this machine that can't be sent."""
    for name, source in served(settings).items():
        found, _, allowed = (
            modelstore.problem(source).removeprefix("found ").partition("; allowed: ")
        )
        if found:
            yield f"serve.{_name(name)}.model", found, allowed


def pyinfra_keys() -> set[str]:
    """Keys of host data that pyinfra and its connectors read."""
    keys = {key for key in all_argument_meta if key.startswith("_")} | CONNECTOR_KEYS
    for connector in get_all_connectors().values():  # type: ignore[no-untyped-call]
        keys |= set(connector.data_meta) | set(getattr(connector.data_cls, "__annotations__", {}))
    return keys


def _validate(data: Mapping[str, object]) -> tuple[Settings, list[Finding]]:
    """Settings from the keys that are sound, and what is wrong with the others."""
    theirs = pyinfra_keys()
    known = theirs | set(Settings.model_fields)
    # Not the value: a mistyped ssh_password holds one.
    findings = [
        (str(key)[:LONGEST], "an unknown key", _nearest(str(key), known))
        for key in data
        if key not in known and not str(key).startswith(OWN_PREFIX)
    ]
    ours = {key: value for key, value in data.items() if key in Settings.model_fields}
    try:
        return Settings.model_validate(ours), findings
    except ValidationError as error:
        # A default that follows from another field is not made where a field is wrong.
        told = [one for one in error.errors() if one["type"] != "default_factory_not_called"]
        wrong = {str(detail["loc"][0]) for detail in told}
        findings += [_field_finding(dict(detail)) for detail in told]
    sound = {key: value for key, value in ours.items() if key not in wrong}
    return Settings.model_validate(sound), findings


def _nearest(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key[:LONGEST], sorted(known), n=1)
    hint = f" (nearest: {near[0]})" if near else ""
    return f"a known key{hint}, or one of your own that begins with {OWN_PREFIX}"


def _field_finding(error: dict[str, Any]) -> Finding:
    """One pydantic error in this project's words."""
    field, *inner = error["loc"]
    key = str(field) + "".join(
        f"[{part}]" if isinstance(part, int) else f".{_name(part)}" for part in inner
    )
    if field == "serve" and inner:
        field, description, error = _of_profile([str(part) for part in inner], error)
    else:
        description = Settings.model_fields[field].description
    found = _shown(field, error["input"])
    if error["type"] == "extra_forbidden":
        return key, "an unknown key", str(description)
    if error["type"] == "missing":
        return key, "nothing", str(description)
    if error["type"].endswith("_type"):
        found += f" ({type(error['input']).__name__})"
    if error["type"] == "value_error":
        return key, found, str(error["ctx"]["error"])
    return key, found, description or error["msg"]


def _of_profile(inner: list[str], error: dict[str, Any]) -> tuple[str, str | None, dict[str, Any]]:
    """The field of a profile, or of its limits, that an error is about; what is allowed there."""
    whole = Settings.model_fields["serve"].description
    if len(inner) == 1 or inner[1] == "[key]":
        return "serve", whole, error
    fields = Bounds.model_fields if inner[1:2] == ["limits"] and len(inner) > 2 else None
    name = inner[2] if fields else inner[1]
    fields = fields or Profile.model_fields
    if name in fields:
        # A URL may hold a password, whatever it was meant for.
        secretive = "://" in str(error["input"])
        return "serve" if secretive else name, fields[name].description, error
    near = difflib.get_close_matches(name[:LONGEST], sorted(fields), n=1)
    return name, f"one of {', '.join(fields)}{f' (nearest: {near[0]})' if near else ''}", error


def _shown(field: str, value: object) -> str:
    """The value as Python writes it, cut; of a setting that may hold a password no text at all."""
    if field in SECRETIVE and not isinstance(value, bool | None):
        size = f"{len(value)} characters" if isinstance(value, str) else "something"
        return f"{size} (not shown: it may hold a password)"
    try:
        text = repr(value)
    except Exception:  # An inventory is a program: an object of its own may fail in any way.
        return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _name(text: object) -> str:
    """The name of an option; one that is none may hold its value, and is not shown."""
    name = str(text)
    return name if re.fullmatch(f"[A-Za-z0-9_-]{{1,{LONGEST}}}", name) else "?"


def _option_findings(settings: Settings) -> Iterator[Finding]:
    size = sum(len(name) + len(value) for name, value in settings.cmake_options.items())
    if size > MOST_OPTIONS:
        yield "cmake_options", f"{size} characters", f"at most {MOST_OPTIONS} in all of them"
        return
    row = release(settings.llama_version)
    for name, value in settings.cmake_options.items():
        key = f"cmake_options.{_name(name)}"
        if allowed := _option_name(name):
            yield key, "that name", allowed
        elif row and OWN.fullmatch(name) and name not in row.options | READ_UNDECLARED:
            yield key, f"no such option in llama-cpp-python {row.version}", _other(name, row)
        elif allowed := _option_value(value):
            yield key, _shown("cmake_options", value), allowed


def _option_name(name: str) -> str:
    """What is allowed in its place; "": nothing is wrong with it."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return "the option's bare name such as LLAVA_BUILD, without -D"
    if name.upper() in _REFUSED_OPTIONS:
        return _REFUSED_OPTIONS[name.upper()]
    kinds = (allowed for kind, allowed in _REFUSED_KINDS if kind.fullmatch(name.upper()))
    return next(kinds, "")


def _other(name: str, row: Release) -> str:
    """What is allowed in the place of an option that a release has not."""
    near, versions = row.nearest(name), having(name)
    hint = f" (nearest: {near})" if near else ""
    return f"one of its options{hint}" + (f", or llama_version {versions[0]}" if versions else "")


def _option_value(value: str) -> str:
    """The same of its value."""
    if value.strip().lower() == "native":
        return "a named architecture (native is silently wrong without a GPU)"
    if not value.isprintable():
        return "printable text on one line"
    if any(c in shlex.quote(value) for c in UNQUOTABLE):
        return "text without quotes, $, ` and \\ (systemd and a shell read it alike then)"
    if redacted(value) != value:
        return "no secret: options are in logs and results, and readable on the host"
    return ""


def _contradictions(settings: Settings) -> Iterator[Finding]:
    if settings.accelerator == "cpu":
        for key in ("compute_capabilities", "toolkit_version", "toolkit_root"):
            value = getattr(settings, key)
            if value is not None:
                yield key, repr(value), 'no such key beside accelerator = "cpu"'
    if settings.toolkit_root is not None and settings.toolkit_method not in ("auto", "present"):
        yield (
            "toolkit_root",
            repr(settings.toolkit_root),
            f'toolkit_method = "present" beside it, not "{settings.toolkit_method}"',
        )
    if settings.compiler_cache_url is not None and settings.compiler_cache == "off":
        yield (
            "compiler_cache_url",
            repr(settings.compiler_cache_url),
            'compiler_cache = "ccache" beside it',
        )
    if settings.toolkit_key is not None and settings.toolkit_url is None:
        yield "toolkit_key", repr(settings.toolkit_key), "toolkit_url beside it, the mirror's URL"
    if settings.toolkit_key is not None:
        yield from _key_findings(Path(settings.toolkit_key))
    if settings.netrc is not None:
        yield from _netrc_findings(Path(settings.netrc))
    if settings.scope == "user":
        for key, off in (("reboot", "never"), ("hold_driver", False)):
            if getattr(settings, key) != off:
                yield key, repr(getattr(settings, key)), 'scope = "system" beside it (root)'
    same = (one for one in releases() if one.sha256 == settings.llama_sha256)
    if (other := next(same, None)) and other.version != settings.llama_version:
        yield (
            "llama_sha256",
            f"the sha256 of {other.version}",
            f"the sha256 of llama_cpp_python-{settings.llama_version}.tar.gz",
        )
    yield from _container_findings(settings)
    if settings.wheelhouse is not None and settings.index_url is not None:
        yield "index_url", repr(settings.index_url), "no index_url beside wheelhouse"


def _container_findings(settings: Settings) -> Iterator[Finding]:
    if settings.runtime == "venv":
        if settings.image is not None:
            yield "image", repr(settings.image), 'runtime = "container" beside it'
        return
    if settings.image is None:
        yield "image", "None", 'the image beside runtime = "container", by its digest'
    if settings.scope == "user":
        yield "runtime", repr(settings.runtime), 'scope = "system" beside it (root)'
    if len(settings.serve) != 1:
        # Each verifies when it starts: two would measure each other.
        found = f"{len(settings.serve)} profiles"
        yield "serve", found, 'one profile, which is served beside runtime = "container"'


def _shared_code(settings: Settings) -> Iterator[Finding]:
    """Options that would give hosts of one fingerprint code that some of them can't run."""
    if settings.build_sharing == "host" and settings.cpu_baseline is None:
        return
    chosen = {NATIVE, *OPTIONS, "GGML_CPU_ARM_ARCH"}
    for name, value in settings.cmake_options.items():
        if name.upper() in chosen:
            yield f"cmake_options.{_name(name)}", "that name", "the setting cpu_baseline"
        elif re.match("CMAKE_C(XX)?_FLAGS", name.upper()) and re.search(r"(^|\s)-m", value):
            allowed = "no -m options beside cpu_baseline and build_sharing: cpu_baseline decides"
            yield f"cmake_options.{_name(name)}", _shown("cmake_options", value), allowed


def _serve_findings(settings: Settings) -> Iterator[Finding]:
    """What several profiles, or one and the controller's files, decide together."""
    names = list(settings.serve)
    if names and settings.scope == "user":
        # A user's own manager keeps no device, no file and no key from what it runs.
        yield "serve", ", ".join(names), 'scope = "system" beside it (root)'
    for at, name in enumerate(names):
        profile, key = settings.serve[name], f"serve.{name}"
        for other in names[:at]:
            if clash(profile, settings.serve[other]):
                found = f"{profile.port}, as serve.{other} has on {settings.serve[other].address}"
                yield f"{key}.port", found, "a port of its own for each profile"
        if profile.api_key_file is not None:
            yield from _api_key_findings(f"{key}.api_key_file", Path(profile.api_key_file))
        elif profile.public:
            yield (
                f"{key}.address",
                f"{profile.address}, which other hosts may reach",
                "api_key_file beside it, or an address of this host alone such as 127.0.0.1",
            )
        if profile.kv_type != "f16" and not profile.flash_attention:
            yield f"{key}.kv_type", profile.kv_type, "f16 beside flash_attention = False"


def _api_key_findings(key: str, file: Path) -> Iterator[Finding]:
    try:
        api_key(file)
    except (OSError, ValueError) as error:
        # The name of no file may be the key itself.
        found = file if isinstance(error, ValueError) else "a file that can't be opened"
        description = Profile.model_fields["api_key_file"].description
        yield key, f"{found} ({_reason(error)})", str(description)


def _key_findings(file: Path) -> Iterator[Finding]:
    try:
        key = small_file(file)
        fingerprints(key)
    except (OSError, ValueError) as error:
        yield "toolkit_key", f"{file} ({_reason(error)})", "a file with a public OpenPGP key"
        return
    # apt and rpm read it by the name of an armored one; config.json carries text.
    if not key.isascii():
        yield "toolkit_key", f"{file} (not armored)", "what gpg --armor --export writes"


def _netrc_findings(file: Path) -> Iterator[Finding]:
    try:
        credentials(file)
    except (OSError, ValueError) as error:
        # The name of no file may be the password itself.
        found = file if isinstance(error, ValueError) else "a file that can't be opened"
        yield "netrc", f"{found} ({_reason(error)})", "a file as of netrc(5) that only you can read"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__


def _wheelhouse_findings(
    settings: Settings, folder: Path, problems: list[str]
) -> Iterator[Finding]:
    for problem in problems:
        yield (
            "wheelhouse",
            problem,
            f"a complete wheelhouse; next: llamafleet wheelhouse build {folder}",
        )
    if problems:
        return
    llama = house.load(folder).llama
    wished = settings.llama_version, settings.llama_sha256 or llama.source_sha256
    if (llama.version, llama.source_sha256) != wished:
        yield (
            "wheelhouse",
            f"llama-cpp-python {llama.version} of source sha256 {llama.source_sha256}",
            f"{wished[0]} of {wished[1]}, as the settings say; "
            f"next: llamafleet wheelhouse build {folder} --llama-version {wished[0]}",
        )
