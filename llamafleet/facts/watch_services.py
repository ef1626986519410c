"""What the services of a host tell of themselves. Runs there with the standard library alone.

Arguments: the services' settings and keys (paths with a * for the profile), the account ("": who
runs this) and the names of metrics. Prints a line of JSON for each service. Of root's rights those
to read settings and keys are used, which root alone writes; then it takes the account's, and what
the account may have put anywhere is met with no more than that.
"""

import http.client
import json
import os
import pwd
import stat
import sys
import time
from pathlib import Path
from typing import Any

MOST_SERVICES = 16
MOST_BYTES = 1 << 20
ANSWER_S = 2.0
LISTENS = "0A"
"""TCP_LISTEN in /proc/net/tcp."""
FAILURES = (OSError, ValueError, KeyError, TypeError, ImportError, http.client.HTTPException)
"""Whatever files and answers of another account may bring."""
UNREADABLE = "found no right to read its settings; expected sudo, or a login of the account"


def main(configs: str, keys: str, user: str, names: str) -> None:
    folder, _, name = configs.rpartition("/")
    paths = sorted(map(str, Path(folder).glob(name)))[:MOST_SERVICES]
    told = [_settings(path, configs, keys) for path in paths]
    account = _become(user)
    for service, config, key in told:
        if config is not None:
            service.update(_asked(config, key, account, names.split()))
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
    except (OSError, ValueError, KeyError, TypeError):
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


def _asked(config: Any, key: str, account: int, names: Any) -> Any:
    told: Any = {}
    try:
        status = json.loads(_text(f"{config['folder']}/status.json"))
        told = {"state": str(status["state"]), "reason": str(status.get("reason", ""))[:200]}
        last = told["state"] in ("held", "failed", "stopped")
        if not last and not _there(status.get("pid"), status.get("start_ticks")):
            told = {"state": "failed", "reason": "found no process of it"}
        if told["state"] in ("ready", "draining"):
            told["metrics"] = _metrics(config, key, account, names)
            told["at"] = time.monotonic()
    except FAILURES as error:
        told["reason"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return told


def _there(pid: Any, ticks: Any) -> bool:
    """The process that tells it has not ended. In a container it has another number there."""
    if type(pid) is not int or type(ticks) is not int:
        return False
    numbers = [pid] + [int(one.name) for one in Path("/proc").glob("[0-9]*")]
    return any(_started(number) == ticks and _within(number) == pid for number in numbers)


def _started(pid: int) -> Any:
    """As protocol.job.start_ticks; None: it has ended."""
    try:
        with Path(f"/proc/{pid}/stat").open(encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(") ")[2].split()
        return None if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _within(pid: int) -> Any:
    """Its number in the innermost namespace; kernels of old tell none."""
    try:
        with Path(f"/proc/{pid}/status").open(encoding="utf-8", errors="replace") as file:
            told = [line.split() for line in file if line.startswith("NSpid:")]
    except OSError:
        return None
    return int(told[0][-1]) if told else pid


def _metrics(config: Any, key: str, account: int, names: Any) -> Any:
    """Value by name. Raises OSError, ValueError, HTTPException."""
    address = config["address"]
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    listener = _listener(int(config["port"]))
    if listener != account:
        # Whoever else listens there is not to get the key, and tells nothing that is believed.
        raise ValueError(
            f"port {config['port']} is listened on by user {listener}, expected {account}"
        )
    connection = http.client.HTTPConnection(address, config["port"], timeout=ANSWER_S)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": "Bearer " + key})
        answer = connection.getresponse()
        page = answer.read(MOST_BYTES).decode(errors="replace")
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"GET /metrics: found status {answer.status}, expected 200")
    lines = (line.split(" ") for line in page.splitlines() if not line.startswith("#"))
    return {parts[0]: float(parts[1]) for parts in lines if parts[0] in names and len(parts) > 1}


def _listener(port: int) -> Any:
    """The number of the user who listens there; None: nobody, or several."""
    users = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with Path(table).open() as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for row in rows:
            if row[3] == LISTENS and int(row[1].rpartition(":")[2], 16) == port:
                users.add(int(row[7]))
    return users.pop() if len(users) == 1 else None


if __name__ == "__main__":
    main(*sys.argv[1:5])
