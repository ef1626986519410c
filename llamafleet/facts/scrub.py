"""A snapshot without the names of its host: to be shown to others, and to be kept as a test.

Each name becomes a made-up one, the same each time; a made-up one stays as it is. All that a plan
rests on is otherwise kept, so the plan of the scrubbed text is that of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from llamafleet.facts.lines import HEADER
from llamafleet.protocol.fingerprint import fingerprint

Kind = Literal["host", "user", "uuid", "id", "serial", "mac", "ip", "ip6", "domain"]

FAKES: dict[Kind, str] = {
    "host": "host-{}",
    "user": "user-{}",
    "uuid": "00000000-0000-0000-0000-{:012d}",
    "id": "{:032d}",
    "serial": "SERIAL-{}",
    "mac": "02:00:00:00:{:02x}:{:02x}",
    "ip": "192.0.2.{}",
    "ip6": "2001:db8::{:x}",
    "domain": "domain-{}.example",
}
"""What takes a name's place. Addresses are those kept for documents: RFC 5737 and 3849."""

MADE_UP: dict[Kind, re.Pattern[str]] = {
    "host": re.compile(r"host-\d+"),
    "user": re.compile(r"user-\d+"),
    "uuid": re.compile(r"0{8}-0{4}-0{4}-0{4}-\d{12}"),
    "id": re.compile(r"0{20}\d{12}"),
    "serial": re.compile(r"SERIAL-\d+"),
    "mac": re.compile(r"02:00:00:00:.*"),
    "ip": re.compile(r"192\.0\.2\..*|127\..*|0\.0\.0\.0|255\..*"),
    "ip6": re.compile(r"2001:db8:.*|::1?|fe80::"),
    "domain": re.compile(r"(?:.*\.)?(?:example|localhost|localdomain|example\.(?:com|org|net))"),
}

PUBLIC = (
    *("nvidia.com", "ubuntu.com", "debian.org", "fedoraproject.org", "redhat.com", "centos.org"),
    *("rockylinux.org", "almalinux.org", "opensuse.org", "suse.com", "archlinux.org", "pypi.org"),
    *("pythonhosted.org", "launchpad.net", "github.com", "kernel.org", "rpmfusion.org"),
    *("amazon.com", "freedesktop.org", "llvm.org", "gnu.org", "proxmox.com", "bazzite.gg"),
)
"""Domains that everybody has in such files, and that tell nothing."""

COMMON_USERS = frozenset(
    (
        *(
            "root",
            "llamafleet",
            "nobody",
            "nogroup",
            "daemon",
            "bin",
            "sys",
            "adm",
            "sudo",
            "wheel",
        ),
        *("users", "staff", "video", "render", "docker", "lxd", "kvm", "libvirt", "disk", "audio"),
        *("ubuntu", "debian", "admin", "user", "core", "fedora", "centos", "rocky", "ec2-user"),
        *("cloud-user", "opc", "azureuser", "plugdev", "systemd-journal", "input", "tty", "games"),
    )
)
"""Accounts and groups that systems and images bring."""

RESERVED = frozenset(
    (
        *("localhost", "gpu", "host", "server", "node", "cuda", "nvidia", "linux", "docker", "vm"),
        *("podman", "wsl", "system", "user", "users", "driver", "module", "kernel", "library"),
        *("python", "local", "home", "opt", "usr", "lib", "etc", "var", "bin", "build", "verify"),
        *("geforce", "rtx", "tesla", "quadro", "arch", "x86_64", "aarch64", "apt", "dnf", "zypper"),
    )
)
"""Words of the format itself: as a host's or user's name they only change where that stands."""

OS_RELEASE = ("ID", "ID_LIKE", "VERSION_ID", "PRETTY_NAME", "VERSION_CODENAME")
"""What is kept of it: the rest are addresses, some of them a company's."""

UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
MAC = re.compile(r"(?<![\w:.-])(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}(?![\w:.-])")
IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)")
IPV6 = re.compile(
    r"(?<![\w:.])(?=[0-9a-fA-F:]*[0-9a-fA-F])"
    r"(?:(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}"
    r"|(?:[0-9a-fA-F]{1,4}:){1,6}(?::[0-9a-fA-F]{1,4}){1,6}|(?:[0-9a-fA-F]{1,4}:){2,7}:)(?![\w:])"
)
SERIAL = re.compile(
    r"(?i)(\b(?:serial(?:[ _]?(?:number|no))?|PDI|GUID)\.?\"?[ \t]{0,80}[:=#]?[ \t]{0,3}\"?"
    r"(?<=[:=# \t\"]))((?:0x)?[A-Z0-9-]{6,40})\b"
)
SIGNER = re.compile(r"^(module_signer=)(\S+)(?= Secure Boot Module Signature key)", re.MULTILINE)
"""As Ubuntu's update-secureboot-policy names the key it makes: the host's name of that time."""
PROGRAM = re.compile(r"(\s(?:C|G|C\+G|M|M\+C)\s{2,10})(\S[^|\n]{0,200}?)(?=\s+(?:\d+MiB|N/A)\s*\|)")
"""A process in nvidia-smi's table."""
HOME = re.compile(r"(/(?:home|Users|export/home|data/home)/)([A-Za-z0-9._-]+)")
MAIL = re.compile(r"(?<![\w@.+-])([A-Za-z0-9._+-]{1,64})@([A-Za-z0-9][A-Za-z0-9.-]{0,200})")
UNIT = re.compile(r"\.(?:service|timer|socket|slice|target|path|scope|mount)$")
URL_HOST = re.compile(r"(?<=://)([A-Za-z0-9.-]{1,253})")
DOMAIN = re.compile(
    r"(?<![\w@-])\.?(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"(?:com|org|net|edu|gov|mil|int|io|ai|dev|cloud|lan|local|internal|intranet|intra|corp"
    r"|private|lab|info|biz)(?![\w-])"
)


@dataclass
class Names:
    """Made-up names by real ones, numbered as they come."""

    made: dict[tuple[Kind, str], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def of(self, kind: Kind, name: str) -> str:
        if MADE_UP[kind].fullmatch(name):
            return name
        if (kind, name) not in self.made:
            self.made[kind, name] = self._next(kind)
        return self.made[kind, name]

    def _next(self, kind: Kind) -> str:
        number = 1
        while (fake := FAKES[kind].format(*_numbers(kind, number))) in self.taken:
            number += 1
        self.taken.add(fake)
        return fake


def _numbers(kind: Kind, number: int) -> tuple[int, ...]:
    return divmod(number, 256) if kind == "mac" else (number,)


@dataclass(frozen=True)
class Scrubbed:
    text: str
    names: dict[str, str]
    """Made-up names by real ones."""


def scrub(text: str) -> Scrubbed:
    """The snapshot's text without names of hosts, users and networks, UUIDs and serial numbers."""
    lines = text.split("\n")
    start = next((n for n, line in enumerate(lines) if line.strip().startswith(HEADER)), 0)
    # A login shell's greeting may say anything.
    body = "\n".join(_os_release(lines[start:]))
    names = Names(taken=_already(body))
    told = _spoken(body, names)
    for name, fake in told:
        body = _word(name).sub(fake, body)
    for change in (_uuids, _ids, _homes, _mails, _urls, _domains, _macs, _ipv6, _ipv4, _serials):
        body = change(body, names)
    body = _fields(body, names)
    return Scrubbed(
        _keys(lines[start:], body), {real: fake for (_, real), fake in names.made.items()}
    )


def _already(text: str) -> set[str]:
    """What looks made up in it: a new name must not be one of these."""
    found: set[str] = set()
    for pattern in (UUID, MAC, IPV4, IPV6, re.compile(r"\b(?:host|user|SERIAL)-\d+\b")):
        found.update(match[0] for match in pattern.finditer(text))
    found.update(re.findall(r"\b\d{32}\b|\bdomain-\d+\.example\b", text))
    return found


def _os_release(lines: list[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        if line.rstrip("\r") == "@begin os-release":
            inside = True
        elif line.rstrip("\r") == "@end":
            inside = False
        elif inside and line[1:].partition("=")[0] not in OS_RELEASE:
            continue
        yield line


def _value(text: str, key: str) -> str:
    found = re.search(rf"^{key}=([^\t\r\n]*)", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])")


def _spoken(text: str, names: Names) -> list[tuple[str, str]]:
    """The names of this host and of its users, to be replaced anywhere: longest first."""
    release = " ".join(re.findall(r"^ (?:PRETTY_NAME|ID|ID_LIKE)=(.*)", text, re.MULTILINE))
    common = RESERVED | COMMON_USERS | set(re.findall(r"[a-z0-9]+", release.lower()))
    found: list[tuple[str, str]] = []
    host = _value(text, "hostname")
    for kind, name in (
        ("host", host),
        ("host", host.partition(".")[0]),
        ("user", _value(text, "user")),
    ):
        if len(name) > 2 and name.lower() not in common and not name.isdigit():
            fake = names.of("host" if kind == "host" else "user", name)
            found.append((name, fake))
    return sorted(set(found), key=lambda pair: -len(pair[0]))


def _fields(text: str, names: Names) -> str:
    """The lines that hold nothing but a name, where even an ordinary word is one."""

    def host(match: re.Match[str]) -> str:
        name = match[2].strip()
        return match[1] + (names.of("host", name) if name else match[2])

    def user(match: re.Match[str]) -> str:
        return match[1] + _user(match[2], names)

    text = re.sub(r"^(hostname=)([^\t\r\n]*)", host, text, flags=re.MULTILINE)
    text = SIGNER.sub(lambda m: m[1] + names.of("host", m[2]), text)
    text = PROGRAM.sub(r"\1program", text)
    text = re.sub(r"^(user=)([^\t\r\n]*)", user, text, flags=re.MULTILINE)
    text = re.sub(
        r"^(account_groups=)([^\r\n]*)",
        lambda m: m[1] + " ".join(_user(name, names) for name in m[2].split(" ")),
        text,
        flags=re.MULTILINE,
    )
    # The block of owners: mode, user, group, path.
    return re.sub(
        r"^(\s{1,2}[0-9a-f]{1,8}\t)([^\t\r\n]+)\t([^\t\r\n]+)(?=\t/)",
        lambda m: f"{m[1]}{_user(m[2], names)}\t{_user(m[3], names)}",
        text,
        flags=re.MULTILINE,
    )


def _user(name: str, names: Names) -> str:
    return name if not name or name in COMMON_USERS else names.of("user", name)


def _replaced(
    pattern: re.Pattern[str], kind: Kind, lower: bool = False
) -> Callable[[str, Names], str]:
    def change(text: str, names: Names) -> str:
        return pattern.sub(lambda m: names.of(kind, m[0].lower() if lower else m[0]), text)

    return change


_uuids = _replaced(UUID, "uuid", lower=True)
_macs = _replaced(MAC, "mac", lower=True)
_ipv6 = _replaced(IPV6, "ip6", lower=True)


VERSIONED = re.compile(
    r"\s*(?:compiler|python|cmake|toolkit|module|module_on_disk|library|kernel|kernel_module|glibc"
    r"|module_file|systemd)="
)
"""Lines in which four numbers are a version."""

VERSIONED_BLOCKS = ("packages", "parts", "dkms", "versionlock", "hold_record")


def _ipv4(text: str, names: Names) -> str:
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        if line.startswith("@begin "):
            inside = line.split(" ", 1)[1].strip() in VERSIONED_BLOCKS
        elif line.startswith("@end"):
            inside = False
        skipped = inside or VERSIONED.match(line)
        lines.append(line if skipped else _addresses(line, names))
    return "\n".join(lines)


def _addresses(text: str, names: Names) -> str:
    def change(match: re.Match[str]) -> str:
        octets = [int(part) for part in match[0].split(".")]
        return names.of("ip", match[0]) if max(octets) < 256 else match[0]

    return IPV4.sub(change, text)


def _ids(text: str, names: Names) -> str:
    """The machine's id, and a controller's in the lock; other 32 hex digits may be hashes."""
    found = {_value(text, "machine_id"), _value(text, "state_machine")}
    found |= set(re.findall(r'"(?:controller|machine_id)":\s*"([0-9a-f]{32})"', text))
    for name in sorted(found):
        if re.fullmatch(r"[0-9a-f]{32}", name):
            text = text.replace(name, names.of("id", name))
    return text


def _homes(text: str, names: Names) -> str:
    return HOME.sub(lambda match: match[1] + _user(match[2], names), text)


def _mails(text: str, names: Names) -> str:
    """Addresses, and user@host as a lock has it; instances of units are none."""

    def change(match: re.Match[str]) -> str:
        if UNIT.search(match[0]):
            return match[0]
        host = match[2].rstrip(".")
        rest = match[2][len(host) :]
        kind: Kind = "domain" if "." in host else "host"
        return f"{_user(match[1], names)}@{names.of(kind, host)}{rest}"

    return MAIL.sub(change, text)


def _is_public(name: str) -> bool:
    bare = name.lower().strip(".")
    return any(bare == public or bare.endswith(f".{public}") for public in PUBLIC)


def _domain(name: str, names: Names) -> str:
    bare = name.lstrip(".")
    if _is_public(bare) or IPV4.fullmatch(bare):
        return name
    return name[: len(name) - len(bare)] + names.of("domain", bare)


def _urls(text: str, names: Names) -> str:
    return URL_HOST.sub(lambda match: _domain(match[1], names), text)


def _domains(text: str, names: Names) -> str:
    return DOMAIN.sub(lambda match: _domain(match[0], names), text)


def _serials(text: str, names: Names) -> str:
    def change(match: re.Match[str]) -> str:
        # A word of a sentence has no digit.
        has_digit = any(sign.isdigit() for sign in match[2])
        return match[1] + (names.of("serial", match[2]) if has_digit else match[2])

    return SERIAL.sub(change, text)


def _keys(before: list[str], after: str) -> str:
    """A result's key is a hash over the GPUs' UUIDs too: made anew where it was right."""
    old, new = _latest(before), _latest(after.split("\n"))
    if not old or not new:
        return after
    key = str(old.get("key"))
    before_inputs, inputs = old.get("inputs"), new.get("inputs")
    if not isinstance(before_inputs, dict) or not isinstance(inputs, dict):
        return after
    return after.replace(key, fingerprint(inputs)) if fingerprint(before_inputs) == key else after


def _latest(lines: list[str]) -> dict[str, object]:
    """The block of the last result; {}: there is none that can be read."""
    start = next((n for n, line in enumerate(lines) if "@begin latest" in line), None)
    if start is None:
        return {}
    block: list[str] = []
    for line in lines[start + 1 :]:
        if line.strip() == "@end":
            break
        block.append(line.strip())
    try:
        read = json.loads("\n".join(block))
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}
