"""The account and its folders, by the commands that a host gets."""

from __future__ import annotations

import pytest

from llamafleet.layout import Layout
from operations.account import account
from tests.operations.fake import FakeHost, fleet

LAYOUT = Layout.system()
ZIPAPP = f"{'0' * 64}  {LAYOUT.zipapp}"


def sent(monkeypatch: pytest.MonkeyPatch, host: FakeHost) -> list[str]:
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(account) == []
    return host.sent


def test_a_bare_host_gets_an_account_that_may_use_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    user, video, render, folders, owned = sent(monkeypatch, FakeHost())
    assert user.startswith("useradd --system ") and user.endswith(" llamafleet")
    assert "--shell /usr/sbin/nologin" in user and "--home-dir /var/lib/llamafleet" in user
    # Debian's driver packages give /dev/nvidia* to group video, mode 0660.
    for group, command in (("video", video), ("render", render)):
        assert command == (
            f"if getent group {group} >/dev/null; then usermod -aG {group} llamafleet; fi"
        )
    assert folders == "install -d -m 755 /opt/llamafleet /etc/llamafleet", "of root"
    assert owned.startswith("install -d -m 755 -o llamafleet -g llamafleet /var/lib/llamafleet ")
    assert "/opt/llamafleet/versions" in owned and "/etc" not in owned


def test_an_account_that_is_there_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = sent(monkeypatch, FakeHost().found("account=1"))
    assert [command.split()[0] for command in commands] == ["install", "install"]


def test_a_host_that_has_all_of_it_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(monkeypatch, FakeHost().found("account=1", files=[ZIPAPP])) == []


def test_in_a_home_there_is_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost("rtx4090-580-ubuntu24-user")
    folders, owned = sent(monkeypatch, host)
    assert "-o " not in owned and "/.local/state/llamafleet/results" in owned
    assert "/opt" not in folders + owned
