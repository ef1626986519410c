"""An SSH server on the loopback interface: what sshd(8) does with a command, in threads.

Each command is run by sh with its standard input and output on the channel; where the channel is
closed its input ends and its output breaks, and no signal is sent, as with sshd without a terminal.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import paramiko

CHUNK = 1 << 15


class Server(paramiko.ServerInterface):
    """Lets everybody in."""

    def __init__(self, host: SshHost) -> None:
        self.host = host

    def get_allowed_auths(self, username: str) -> str:
        return "none,publickey,password"

    def check_auth_none(self, username: str) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(
            target=self.host.run, args=(channel, command.decode()), daemon=True
        ).start()
        return True


class SshHost:
    """One host, whose programs are those of `bin` and then this machine's."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.transports: list[paramiko.Transport] = []
        self.sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._key = paramiko.RSAKey.generate(2048)
        threading.Thread(target=self._serve, daemon=True).start()

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def data(self, **more: object) -> dict[str, object]:
        """Of an inventory."""
        return {
            "ssh_hostname": "127.0.0.1",
            "ssh_port": self.port,
            "ssh_user": "test",
            "ssh_password": "test",
            "ssh_known_hosts_file": "/dev/null",
            "ssh_strict_host_key_checking": "no",
            **more,
        }

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(accepted)
            transport.add_server_key(self._key)
            self.transports.append(transport)
            self.sockets.append(accepted)
            with suppress(Exception):
                transport.start_server(server=Server(self))

    def run(self, channel: Any, command: str) -> None:
        process = subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"},
            start_new_session=True,
        )
        self.processes.append(process)
        threading.Thread(target=_feed, args=(channel, process), daemon=True).start()
        assert process.stdout
        with suppress(OSError):
            while chunk := os.read(process.stdout.fileno(), CHUNK):
                channel.sendall(chunk)
        process.stdout.close()
        with suppress(Exception):
            channel.send_exit_status(process.wait())
            channel.close()

    def die(self) -> None:
        """Every connection breaks, and none is taken any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self.transports:
            one.close()

    def alive(self) -> list[int]:
        """Commands that run."""
        return [one.pid for one in self.processes if one.poll() is None]

    def stop(self) -> None:
        self.die()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _feed(channel: Any, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    with suppress(Exception):
        while chunk := channel.recv(CHUNK):
            os.write(process.stdin.fileno(), chunk)
    with suppress(OSError):
        process.stdin.close()


@contextmanager
def ssh_hosts(folder: Path, *names: str) -> Iterator[dict[str, SshHost]]:
    hosts = {name: SshHost(folder / name) for name in names}
    try:
        yield hosts
    finally:
        for host in hosts.values():
            host.stop()


def inventory(folder: Path, hosts: dict[str, SshHost], **settings: object) -> Path:
    """A file of pyinfra's with these hosts."""
    rows = [(name, host.data()) for name, host in hosts.items()]
    file = folder / "fleet.py"
    file.write_text(f"fleet = ({rows!r}, {settings!r})\n")
    return file
