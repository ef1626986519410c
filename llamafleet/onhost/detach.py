"""Start a command of the zipapp so that it outlives the connection, where there is no systemd."""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from llamafleet.protocol.job import PATH

EXIT_USAGE = 2


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of `start`, and the command after the first "--"."""
    args = list(argv)
    split = args.index("--") if "--" in args else len(args)
    parser = argparse.ArgumentParser(
        prog="llamafleet-host.pyz start",
        usage="%(prog)s --log FILE -- CMD ...",
        description="Run a command of the zipapp so that it outlives this connection.",
    )
    parser.add_argument("--log", type=Path, required=True, help="gets stdout and stderr, appended")
    options = parser.parse_args(args[:split])
    if not args[split + 1 :]:
        parser.error("found no command; expected one after --")
    return options, args[split + 1 :]


def environment() -> dict[str, str]:
    """What the command gets: nothing of this process's, which may be anybody's."""
    account = pwd.getpwuid(os.getuid())
    return {
        "PATH": PATH,
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": "/bin/sh",
        "LC_ALL": "C.UTF-8",
    }


def main(args: Sequence[str]) -> int:
    """Detach and return at once; 2 with a message where the command could not be started.

    With the rights of the caller: root leaves its own behind before it calls this.
    """
    options, command = parse(args)
    try:
        env = environment()
    except KeyError:
        return _usage(f"found no account of uid {os.getuid()}; next: deploy again")
    zipapp = Path(sys.argv[0]).resolve()
    argv = [sys.executable, "-I", str(zipapp), *command]
    if error_text := _spawn(argv, env, options.log.absolute()):
        return _usage(error_text)
    return 0


def _usage(message: str) -> int:
    print(f"start: {message}", file=sys.stderr)
    return EXIT_USAGE


def _spawn(argv: list[str], env: dict[str, str], log: Path) -> str:
    """Run `argv` in a session of its own, owned by init; "" or why it could not be started."""
    # The pipe closes when exec succeeds; until then the child reports on it what went wrong.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become(argv, env, log, writer)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        return pipe.read()


def _become(argv: list[str], env: dict[str, str], log: Path, report: int) -> NoReturn:
    try:
        os.setsid()
        # A second fork: the session's leader ends, so no terminal can ever be acquired.
        if os.fork():
            os._exit(0)
        os.umask(0o022)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o640)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        os.chdir("/")
        os.execve(argv[0], argv, env)
    except OSError as error:
        os.write(report, f"{error}".encode())
    os._exit(EXIT_USAGE)
