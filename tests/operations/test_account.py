"""The account and its folders, by the commands that a host gets."""

from __future__ import annotations

from llamafleet.layout import Layout
from tests.operations.fake import FakeHost

LAYOUT = Layout.system()
ROOTS = ("folder | /opt/llamafleet", "folder | /etc/llamafleet", "folder | /var/lib/llamafleet")


def whole(host: FakeHost) -> FakeHost:
    """The same host with an account and folders as they should be."""
    return host
