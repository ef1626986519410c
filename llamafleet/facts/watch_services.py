"""What the services of a host tell of themselves. Runs there with the standard library alone.

Arguments: the services' settings, keys and units (with a * for the profile), the account ("": who
runs this) and the names of metrics. Prints a line of JSON for each service. Of root's rights those
to read settings and keys are used, which root alone writes; then it takes the account's, and what
the account may have put anywhere is met with no more than that. Which processes are a service's is
told by their control group, which the account can't choose.
"""

import http.client
import json
import math
import os
import pwd
import re
import socket
import stat
import sys
import time
from pathlib import Path
from typing import Any

MOST_SERVICES = 16
MOST_BYTES = 1 << 20
ANSWER_S = 2.0
PROC = "/proc"
LISTENS = "0A"
"""TCP_LISTEN in /proc/net/tcp."""
FAILURES = (
    *(OSError, ValueError, LookupError, TypeError, ImportError, http.client.HTTPException),
    *(ArithmeticError, RuntimeError),  # Infinity, and brackets in brackets.
)
"""Whatever files and answers of another account may bring."""
UNREADABLE = "found no right to read its settings; expected sudo, or a login of the account"


def main(configs: str, keys: str, units: str, user: str, names: str) -> None:
    folder, _, name = configs.rpartition("/")
    paths = sorted(map(str, Path(folder).glob(name)))[:MOST_SERVICES]
    told = [_settings(path, configs, keys) for path in paths]
    account = _become(user)
    every = _processes(units, account)
    for service, config, key in told:
        if config is not None:
            own = every.get(service["profile"], {})
            service.update(_asked(config, key, own, names.split()))
        print(json.dumps(service))


def _settings(path: str, configs: str, keys: str) -> Any:
    """What is told of a service so far, its settings, its key."""
    before, after = configs.split("*")
    profile = path[len(before) : len(path) - len(after)]
    service: Any = {"profile": profile, "state": None, "reason": "", "metrics": {}, "at": 0.0}
    try:
        config = json.loads(_text(path))
        service["alias"] = str(config["alias"])
        service["gpus"] = [str(uuid) for uuid in config.get("gpus", [])]
        key = _text(keys.replace("*", profile)).strip() if config["key"] else ""
    except FAILURES:
        return {**service, "reason": UNREADABLE}, None, ""
    return service, config, key


def _text(path: str) -> str:
    """Of a plain file. Raises OSError, ValueError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("no plain file")
        return file.read(MOST_BYTES).decode()


def _become(user: str) -> int:
    """The number of the account whose rights are used from now on."""
    if user and os.getuid() == 0:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    return os.getuid()


def _processes(units: str, account: int) -> Any:
    """By profile: the account's processes in the unit, each with its number as it sees it itself.

    In a container that number is another one than on the host.
    """
    before, after = map(re.escape, units.split("*"))
    unit = re.compile(rf"/{before}([^/\n]+){after}(?:/|$)", re.MULTILINE)
    found: Any = {}
    for folder in Path(PROC).glob("[0-9]*"):
        try:
            of = unit.search((folder / "cgroup").read_text())
            text = (folder / "status").read_text() if of else ""
        except OSError:  # It has ended.
            continue
        told = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if of and told and int(told["Uid"].split()[0]) == account:
            own = told.get("NSpid", folder.name).split()[-1]
            found.setdefault(of[1], {})[int(folder.name)] = int(own)
    return found


def _asked(config: Any, key: str, own: Any, names: Any) -> Any:
    told: Any = {}
    try:
        status = json.loads(_text(f"{config['folder']}/status.json"))
        told = {"state": str(status["state"]), "reason": str(status.get("reason", ""))[:200]}
        last = told["state"] in ("held", "failed", "stopped")
        if not last and not _told_by(int(status["pid"]), status.get("start_ticks"), own):
            told = {"state": "failed", "reason": "found no process of it"}
        if told["state"] in ("ready", "draining"):
            told["metrics"] = _metrics(config, key, own, names)
            told["at"] = time.monotonic()
    except FileNotFoundError:
        told["reason"] = "it has told nothing yet" if own else "found no process and no word of it"
    except FAILURES as error:
        told["reason"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return told


def _told_by(pid: int, ticks: Any, own: Any) -> bool:
    """One of these processes: the first of a container has the number of the one before it."""
    return any(inside == pid and _started(one) == ticks for one, inside in own.items())


def _started(pid: int) -> Any:
    """As protocol.job.start_ticks; "": it has ended."""
    try:
        with Path(f"{PROC}/{pid}/stat").open(encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(") ")[2].split()[19])
    except OSError:
        return ""


def _metrics(config: Any, key: str, own: Any, names: Any) -> Any:
    """Value by name. Raises OSError, ValueError, HTTPException."""
    address = config["address"]
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    port = int(config["port"])
    sockets = _listening(address, port)
    if not sockets or not sockets <= _sockets(own):
        # Whoever else listens there is not to get the key, and tells nothing that is believed.
        found = "of another process" if sockets else "closed"
        raise ValueError(f"found {address} port {port} {found}; expected one of this service")
    connection = http.client.HTTPConnection(address, port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": "Bearer " + key})
        answer = connection.getresponse()
        page = answer.read(MOST_BYTES).decode(errors="replace")
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"GET /metrics: found status {answer.status}, expected 200")
    lines = (line.split(" ") for line in page.splitlines() if not line.startswith("#"))
    told = {parts[0]: float(parts[1]) for parts in lines if parts[0] in names and len(parts) > 1}
    # Prometheus has figures that are no numbers, and JSON none of them.
    return {name: value for name, value in told.items() if math.isfinite(value)}


def _listening(address: str, port: int) -> Any:
    """Inodes of the sockets that take a connection to that place: the kernel's own choice."""
    rows: Any = {}
    for table in (PROC + "/net/tcp", PROC + "/net/tcp6"):
        try:
            with Path(table).open() as file:
                lines = [line.split() for line in file][1:]
        except OSError:
            continue
        for line in lines:
            place, _, number = line[1].rpartition(":")
            if line[3] == LISTENS and int(number, 16) == port:
                rows.setdefault(place, set()).add(line[9])
    return next((rows[place] for place in _places(address) if place in rows), set())


def _places(address: str) -> Any:
    """As /proc/net/tcp writes them, the one that is preferred first."""
    if ":" in address:
        every = [(socket.AF_INET6, address), (socket.AF_INET6, "::")]
    else:
        every = [(socket.AF_INET, address), (socket.AF_INET6, "::ffff:" + address)]
        every += [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
    for family, text in every:
        raw = socket.inet_pton(family, text)
        words = (raw[at : at + 4] for at in range(0, len(raw), 4))
        yield "".join(format(int.from_bytes(word, sys.byteorder), "08X") for word in words)


def _sockets(own: Any) -> Any:
    """Inodes of all that these processes have open. Raises OSError where that may not be seen."""
    found = set()
    for pid in own:
        for link in Path(f"{PROC}/{pid}/fd").iterdir():
            try:
                target = os.readlink(str(link))  # noqa: PTH115 (Python 3.6 has no other)
            except FileNotFoundError:  # It was closed meanwhile.
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


if __name__ == "__main__":
    main(*sys.argv[1:6])
