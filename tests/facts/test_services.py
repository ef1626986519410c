"""What of services is on a host: their files, units and words, and who listens on their ports."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llamafleet.facts.host import Listener
from llamafleet.facts.reader import parse
from llamafleet.layout import serve_unit
from llamafleet.protocol.serve import Placement, Status
from tests.facts.fakehost import FakeHost
from tests.facts.test_reader import GOOD

READY = Status(1, "chat", "ready", 1.5, 7, fingerprint="f00", placement=Placement(-1, 512))


def tell(fake: FakeHost, name: str, status: dict[str, Any] | str) -> Path:
    text = status if isinstance(status, str) else json.dumps(status)
    return fake.write(fake.state / "serve" / name / "status.json", text)


def test_what_a_service_says_is_read(fake: FakeHost) -> None:
    tell(fake, "chat", asdict(READY) | {"newer": 1})
    assert fake.snapshot().services == {"chat": READY}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", json.dumps(asdict(READY) | {"state": "fine"}), "x" * (2 << 20)]
)
def test_a_word_that_is_none_is_left_out(fake: FakeHost, text: str) -> None:
    tell(fake, "chat", text)
    assert fake.snapshot().services == {}


def test_each_speaks_for_itself_alone(fake: FakeHost) -> None:
    tell(fake, "web", asdict(READY))
    tell(fake, "Odd Name", asdict(READY) | {"profile": "Odd Name"})
    (fake.state / "serve/linked").mkdir()
    (fake.state / "serve/linked/status.json").symlink_to(tell(fake, "other", asdict(READY)))
    assert fake.snapshot().services == {}


def test_files_of_profiles_that_no_setting_names_are_seen(fake: FakeHost) -> None:
    etc, units = Path(fake.layout.etc), Path(fake.layout.units)
    mine = [
        fake.write(etc / "serve-old.json", "{}"),
        fake.write(etc / "serve-old.key", "k", mode=0o600),
        fake.write(units / serve_unit("other"), "[Unit]"),
    ]
    fake.write(etc / "serve-Not Ours.json", "{}")
    fake.write(etc / "verify.json", "{}")
    snapshot = fake.snapshot()
    assert set(snapshot.files) == set(map(str, mine)) == set(snapshot.owners)
    changed = {str(file): int(file.stat().st_ctime) for file in mine}
    assert changed.items() <= snapshot.changed.items()


def test_of_a_host_that_serves_nothing_no_time_is_asked(fake: FakeHost) -> None:
    fake.files = (str(fake.write(fake.prefix / "llamafleet-host.pyz", "x")),)
    assert fake.snapshot().changed == {}


def test_the_switch_is_told_by_its_own_time(fake: FakeHost) -> None:
    fake.write(Path(fake.layout.etc) / "serve-a.json", "{}")
    fake.prefix.mkdir(exist_ok=True)
    current = fake.prefix / "current"
    current.symlink_to("/no/such")
    assert fake.snapshot().changed[str(current)] == int(current.lstat().st_ctime)


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 4242 1
   1: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4243 1
   2: 0100007F:1F40 0100007F:9C4A 01 00000000:00000000 00:00000000 00000000    33        0 4244 1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:1F40 0:0000 0A 0:0 0:0 0 0 0 4245 1
"""


def test_who_listens_is_told_with_its_unit(fake: FakeHost) -> None:
    fake.borrow("find")
    fake.ports = (8000, 9000)
    fake.write(fake.root / "proc/net/tcp", TCP)
    fake.write(fake.root / "proc/net/tcp6", TCP6)
    process = fake.root / "proc/4711"
    (process / "fd").mkdir(parents=True)
    (process / "fd/3").symlink_to("socket:[4242]")
    fake.write(process / "comm", "nginx\n")
    fake.write(process / "cgroup", "0::/system.slice/nginx.service\n")
    assert fake.snapshot().listening == (
        Listener(8000, "127.0.0.1", 33, 4711, "nginx", "nginx.service"),
        Listener(8000, "::", 0),
    )
    # podman 5.4.2 puts what runs in a container below the unit's own group.
    fake.write(process / "cgroup", "0::/system.slice/nginx.service/libpod-payload-7fd05f38\n")
    assert fake.snapshot().listening[0].unit == "nginx.service"


def test_without_ports_nobody_is_looked_for(fake: FakeHost) -> None:
    fake.write(fake.root / "proc/net/tcp", TCP)
    assert fake.snapshot().listening == ()


def test_a_process_that_may_not_be_seen_is_told_by_its_port(fake: FakeHost) -> None:
    fake.ports = (8000,)
    fake.write(fake.root / "proc/net/tcp", TCP)
    assert fake.snapshot().listening == (Listener(8000, "127.0.0.1", 33),)


@pytest.mark.parametrize("line", ["listening=8000", "listening=x\t0100007F", "listening=8000\tZZ"])
def test_an_odd_row_of_it_is_left_out(line: str) -> None:
    text = [one for one in GOOD if one != "complete=1"]
    made = parse([*text[:-1], line, "complete=1", text[-1]])
    assert all(one.address for one in made.listening)


def test_servers_packages_are_whole_or_not(fake: FakeHost) -> None:
    fake.write(fake.prefix / "serve/aa/whole.json", "{}")
    (fake.prefix / "serve/bb").mkdir()
    assert fake.snapshot().servers == {"aa": True, "bb": False}


def test_the_image_of_a_container_is_told_by_the_file_that_is_kept_of_it(
    fake: FakeHost, shell: str
) -> None:
    fake.shell = shell
    name = f"registry.lab:5000/llama@sha256:{'a' * 64}"
    etc = Path(fake.layout.etc)
    kept = fake.write(Path(fake.layout.former_container("chat-2")), f"[Container]\nImage={name}\n")
    config = fake.write(Path(fake.layout.former_config("chat-2")), "{}")
    fake.write(etc / "former-odd.container", "[Container]\nImage=llama:latest\n")
    (etc / "former-link.container").symlink_to(kept)
    snapshot = fake.snapshot()
    assert snapshot.images == {str(kept): name}
    assert {str(kept), str(config)} <= set(snapshot.files)
