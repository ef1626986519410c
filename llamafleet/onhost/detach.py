"""Start a command of the zipapp so that it outlives the connection, where there is no systemd."""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

EXIT_USAGE = 2


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of `start`, and the command after the first "--"."""
    args = list(argv)
    split = args.index("--") if "--" in args else len(args)
    parser = argparse.ArgumentParser(
        prog="llamafleet-host.pyz start",
        usage="%(prog)s --log FILE [--user NAME] [--env-file FILE] -- CMD ...",
        description="Run a command of the zipapp so that it outlives this connection.",
    )
    parser.add_argument("--log", type=Path, required=True, help="gets stdout and stderr, appended")
    parser.add_argument("--user", help="become this user first (root only)")
    parser.add_argument("--env-file", type=Path, help="variables, as in systemd's files")
    options = parser.parse_args(args[:split])
    if not args[split + 1 :]:
        parser.error("found no command; expected one after --")
    return options, args[split + 1 :]


def read_env_file(path: Path) -> dict[str, str]:
    """KEY=VALUE lines as systemd reads them: comments, optional quotes, nothing expanded.

    Raises OSError, and ValueError for a line that is none of it.
    """
    env: dict[str, str] = {}
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        key, equals, value = line.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{path}:{number}: found {line!r}; expected KEY=VALUE")
        value = value.strip()
        env[key] = " ".join(shlex.split(value)) if value[:1] in ("'", '"') else value
    return env


def user_environment(account: pwd.struct_passwd) -> dict[str, str]:
    """This process's environment with what names the caller replaced by what names `account`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SUDO_", "XDG_"))}
    return env | {
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": "/bin/sh",
    }


def main(args: Sequence[str]) -> int:
    """Detach and return at once; 2 with a message where the command could not be started."""
    options, command = parse(args)
    try:
        account = pwd.getpwnam(options.user) if options.user else pwd.getpwuid(os.getuid())
        env = user_environment(account) if options.user else dict(os.environ)
        if options.env_file:
            env |= read_env_file(options.env_file)
    except KeyError:
        return _usage(f"--user: found no account {options.user!r}; next: deploy again")
    except (OSError, ValueError) as error:
        return _usage(f"--env-file: {error}")
    if account.pw_uid != os.getuid() and os.getuid() != 0:
        return _usage(f"--user {options.user}: only root may become another user")
    zipapp = Path(sys.argv[0]).resolve()
    argv = [sys.executable, str(zipapp), *command]
    if error_text := _spawn(argv, env, account, options.log.absolute()):
        return _usage(error_text)
    return 0


def _usage(message: str) -> int:
    print(f"start: {message}", file=sys.stderr)
    return EXIT_USAGE


def _spawn(argv: list[str], env: dict[str, str], account: pwd.struct_passwd, log: Path) -> str:
    """Run `argv` in a session of its own, owned by init; "" or why it could not be started."""
    # The pipe closes when exec succeeds; until then the child reports on it what went wrong.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become(argv, env, account, log, writer)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        return pipe.read()


def _become(
    argv: list[str], env: dict[str, str], account: pwd.struct_passwd, log: Path, report: int
) -> NoReturn:
    try:
        os.setsid()
        # A second fork: the session's leader ends, so no terminal can ever be acquired.
        if os.fork():
            os._exit(0)
        if account.pw_uid != os.getuid():
            os.initgroups(account.pw_name, account.pw_gid)
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
        os.umask(0o022)
        # Opened as the new user, so that a link planted in its folder gains nothing.
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        os.chdir("/")
        os.execve(argv[0], argv, env)
    except OSError as error:
        os.write(report, f"{error}".encode())
    os._exit(EXIT_USAGE)
