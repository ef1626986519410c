"""Ports for servers of the tests, below those that the system gives to connections."""

from __future__ import annotations

import os
import socket
from itertools import count

FIRST, EACH = 20000, 1000
"""Each process of pytest-xdist has its own thousand: what one has found free no other takes."""
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
_numbers = count(os.getpid() % (EACH // 2))


def free_port() -> int:
    """One that nobody listens at, and that this process has not named lately."""
    for number in _numbers:
        port = FIRST + _worker * EACH + number % EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("never: the numbers do not end")
