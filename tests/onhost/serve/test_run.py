"""The parent: what it refuses to start, what it tells of it, and an out of memory."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost import oom as on_host
from llamafleet.onhost.serve import child, gate, memory, reduction, run, settings
from llamafleet.onhost.serve.child import Child, Said
from llamafleet.onhost.serve.notify import notify
from llamafleet.protocol import oom
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import WHOLE
from llamafleet.protocol.result import CPU_ONLY, Result
from llamafleet.protocol.serve import Placement, Reduction, ServeConfig, Status, status_file
from llamafleet.protocol.verify import BenchSettings, VerifyInputs
from tests.ports import free_port

KEY = "sk-0123456789abcdefg"
"""Of the fewest characters that are taken."""
INPUTS = VerifyInputs("f00", None, (), "synthetic:tiny-q4_0", BenchSettings(1, 1, 1), 512)


class Files:
    """The files of one service, without a model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("serve", "libraries", "credentials", "results"):
            (root / name).mkdir()
        (root / "libraries" / WHOLE).write_text("{}")
        (root / "credentials" / "api-key").write_text(f"{KEY}\n")
        verify = {
            **{"version": 1, "host": "test", "inputs": asdict(INPUTS), "backend": "cpu"},
            **{"toolkit": None, "prefix": str(root), "stamp": str(root), "job": str(root)},
            **{"results": str(root / "results"), "models": str(root)},
            **{"compute_capabilities": [], "allow_cpu_only": True},
        }
        (root / "verify.json").write_text(json.dumps(verify))
        self.config: dict[str, Any] = {
            **{"version": 1, "profile": "chat", "host": "test", "alias": "chat", "key": True},
            **{"verify": f"{root}/verify.json", "folder": f"{root}/serve"},
            **{"libraries": f"{root}/libraries", "model": f"{root}/model.gguf"},
            **{"placement": {"n_gpu_layers": -1, "n_ctx": 4096}},
            **{"address": "127.0.0.1", "port": free_port()},
        }

    @property
    def served(self) -> ServeConfig:
        return decode(ServeConfig, self.config)

    def main(self) -> int:
        path = self.root / "serve-chat.json"
        path.write_text(json.dumps(self.config))
        return run.main(["--config", str(path)])

    @property
    def status(self) -> Status:
        return decode(Status, json.loads(status_file(self.served).read_text()))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    return Files(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"port": 0}, "port: found 0, expected a port"),
        ({"profile": "Chat/.."}, "profile"),
        ({"address": "0.0.0.0", "key": False}, "address: found 0.0.0.0 without an API key"),
        ({"address": "192.0.2.1", "key": False}, "found 192.0.2.1 without an API key"),
        *(
            ({"address": address}, "expected an IP address such as 127.0.0.1")
            for address in ("host.example", "", "\0", "127.0.0.1:8000")
        ),
        (
            {"placement": {"n_gpu_layers": 1, "n_ctx": 1, "kv_type": "q8_0"}}
            | {"flash_attention": False},
            "kv_type: found q8_0 without flash attention",
        ),
        ({"libraries": "/nowhere"}, "libraries: found no whole /nowhere"),
    ],
)
def test_settings_that_no_restart_mends_are_refused(
    files: Files, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], said: str
) -> None:
    files.config |= changed
    assert files.main() == run.EXIT_USAGE
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_settings_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("", "[1]", "[" * 100_000):
        (tmp_path / "x.json").write_text(text)
        assert run.main(["--config", str(tmp_path / "x.json")]) == run.EXIT_USAGE
    assert run.main(["--config", str(tmp_path / "none.json")]) == run.EXIT_USAGE
    assert "next: llamafleet deploy" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key", ["", "short", "with a blank in it, and long", KEY[1:], "k\x07" + "e" * 20]
)
def test_a_key_that_is_none_is_refused_and_not_told(files: Files, key: str) -> None:
    (files.root / "credentials" / "api-key").write_text(key)
    assert files.main() == run.EXIT_USAGE
    assert files.status.state == "failed"
    assert "API key: found" in files.status.reason
    assert not key or key not in files.status.reason


def test_no_credential_at_all_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert files.main() == run.EXIT_USAGE
    (files.root / "credentials" / "api-key").unlink()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(files.root / "credentials"))
    assert files.main() == run.EXIT_USAGE


def test_a_port_that_another_has_is_refused_with_what_to_type(files: Files) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", files.config["port"]))
        other.listen()
        assert files.main() == run.EXIT_USAGE
    assert "Address already in use" in files.status.reason
    assert f"ss -ltnp 'sport = :{files.config['port']}'" in files.status.reason


def test_without_a_proof_it_is_held_and_loads_nothing(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "Child", None)
    assert files.main() == gate.EXIT_HELD
    assert files.status.state == "held"
    assert files.status.reason.startswith("found ")


SMALLER = Placement(n_gpu_layers=10, n_ctx=4096)
OOM = (
    (Path(__file__).parents[2] / "protocol" / "data" / "oom" / "context.log")
    .read_text()
    .splitlines()
)
FOUND = str(oom.read(OOM))


class Children:
    """In place of the process that serves: each says something, leaves lines and ends."""

    def __init__(self, *each: tuple[list[Said], list[str], int]) -> None:
        self.each, self.told = list(each), list[Any]()
        self.process = type("P", (), {"terminate": lambda _: None, "kill": lambda _: None})()

    def __call__(self, told: Any, environment: Any) -> Children:
        self.told.append((told, dict(environment)))
        self._said, self.lines, self._status = self.each.pop(0)
        self.loud, self.hung = self.lines, False
        return self

    def said(self) -> Iterator[Said]:
        return iter(self._said)

    def ended(self) -> int | None:
        return self._status


def proven(config: ServeConfig) -> gate.Verdict:
    proof = Result("test", CPU_ONLY, "f00", "key", INPUTS, 1.0)
    return gate.Verdict(True, "", proof, ("GPU-1", "GPU-2"))


@pytest.fixture
def started(files: Files, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(gate, "judge", proven)

    def reduced(
        config: ServeConfig, placement: Placement, found: Any, gpus: Sequence[str]
    ) -> Placement | None:
        assert gpus == ("GPU-1", "GPU-2")
        return SMALLER if placement != SMALLER else None

    monkeypatch.setattr(on_host, "reduced", reduced)

    def start(*each: tuple[list[Said], list[str], int]) -> tuple[int, Children]:
        children = Children(*each)
        monkeypatch.setattr(run, "Child", children)
        return files.main(), children

    return start


READY = Said("ready", load_s=1.5)


def test_the_child_gets_the_gpus_and_the_key_where_nobody_reads_it(
    files: Files, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/evil.so")
    _, children = started(([READY], [], 1))
    ((told, environment),) = children.told
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert "LD_PRELOAD" not in environment
    assert told.key not in environment.values()
    assert (told.key, told.backend, told.fingerprint) == (KEY, "cpu", "f00")


@pytest.mark.parametrize(("on_oom", "code"), [("stop", run.EXIT_USAGE), ("reduce", 1)])
def test_an_out_of_memory_while_it_loads(
    files: Files, started: Any, on_oom: str, code: int
) -> None:
    files.config["on_oom"] = on_oom
    ended = ([Said("failed", "llama.cpp can't load it")], OOM, 1)
    found, children = started(ended, ([READY], ["CUDA error: an illegal memory access"], -6))
    assert found == code
    if on_oom == "stop":
        assert len(children.told) == 1
        assert files.status.reason.startswith(FOUND)
        assert "set n_gpu_layers = 10" in files.status.reason
        return
    assert [told.placement for told, _ in children.told] == [files.served.placement, SMALLER]
    assert [told.reduced for told, _ in children.told] == [False, True]
    kept = decode(Reduction, json.loads((files.root / "serve" / "reduced.json").read_text()))
    assert (kept.was, kept.now) == (files.served.placement, SMALLER)
    assert kept.reason == FOUND
    assert files.status.placement == SMALLER


def test_a_reduction_stays_until_the_settings_change_and_comes_once(
    files: Files, started: Any
) -> None:
    files.config["on_oom"] = "reduce"
    config = files.served
    made = Reduction(1.0, FOUND, config.placement, SMALLER)
    reduction.write(config, made)
    code, children = started(([Said("failed")], OOM, 1))
    assert code == run.EXIT_USAGE  # not twice
    assert [told.placement for told, _ in children.told] == [SMALLER]
    assert "use a smaller model" in files.status.reason
    files.config["placement"]["n_ctx"] = 2048
    _, children = started(([READY], [], 1))
    assert [told.reduced for told, _ in children.told] == [False]
    assert reduction.read(replace(config)) is None


def test_an_out_of_memory_in_use_is_a_failure_that_a_restart_may_mend(
    files: Files, started: Any
) -> None:
    assert started(([READY], OOM, -6))[0] == run.EXIT_FAILED


CUDA_ERROR = ["CUDA error: an illegal memory access was encountered"]


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        (([READY], CUDA_ERROR, -6), f"found it ended by SIGABRT; log: {CUDA_ERROR[0]}"),
        (([READY], [], -9), "found it ended by SIGKILL"),
        (([Said("loading")], ["ImportError: libcuda"], 1), "log: ImportError: libcuda"),
        (([READY, Said("failed", "model: found no token")], [], 1), "model: found no token"),
    ],
)
def test_how_it_ended_is_told(
    files: Files, started: Any, child: tuple[list[Said], list[str], int], reason: str
) -> None:
    assert started(child)[0] == run.EXIT_FAILED
    assert files.status.state == "failed"
    assert reason in files.status.reason


def test_a_signal_of_real_time_has_a_number(files: Files, started: Any) -> None:
    assert started(([READY], [], -40))[0] == run.EXIT_FAILED
    assert "found it ended by signal 40" in files.status.reason


def test_what_the_kernel_kills_for_memory_is_told_also_where_systemd_then_stops_it(
    files: Files, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OOMPolicy=stop sends SIGTERM at once."""
    events, counts = files.root / "memory.events", iter([1, 2])
    monkeypatch.setattr(memory, "killed", lambda: next(counts))
    monkeypatch.setattr(run.Service, "stopping", False)

    def ended(self: Children) -> int:
        assert not events.exists()
        os.kill(os.getpid(), signal.SIGTERM)
        return -signal.SIGKILL

    monkeypatch.setattr(Children, "ended", ended)
    assert started(([READY], [], -9))[0] == run.EXIT_FAILED
    assert (files.status.state, files.status.reason) == ("failed", memory.TOLD)


@pytest.mark.parametrize(
    ("groups", "file", "count"),
    [
        ("0::/a/b\n", "a/b/memory.events", 3),
        ("4:memory:/x\n0::/\n", "memory/x/memory.oom_control", 3),
        ("0::/\n", "memory.events", 3),
        ("0::/gone\n", "a", 0),
    ],
)
def test_how_many_the_kernel_killed_is_read_of_the_own_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, file: str, count: int
) -> None:
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("under_oom 0\noom 4\noom_kill 3\n")
    monkeypatch.setattr(memory, "GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert memory.killed() == count


def test_a_state_that_can_not_be_written_leaves_no_older_one(
    files: Files, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    status_file(files.served).write_text('{"state": "ready"}')

    def full(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_json", full)
    started(([READY], [], 1))
    assert not status_file(files.served).exists()


def test_what_is_quoted_is_one_line_that_no_terminal_obeys(files: Files, started: Any) -> None:
    started(([Said("failed", "a\nb\x1b[2Jc")], [], 1))
    assert files.status.reason.startswith("a b [2Jc")


class Process(Child):
    """A process that says what it is told to, in place of the one that serves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        monkeypatch.setattr(child, "_BOOTSTRAP", f"import os, signal, sys, time; {code}")
        config = {"profile": "chat"}
        monkeypatch.setattr(child, "asdict", lambda told: config)
        with Path(os.devnull).open() as null:
            told = type("T", (), {"socket": null.fileno()})()
            super().__init__(told, {})


def test_a_child_that_hangs_is_ended_and_told(
    monkeypatch: pytest.MonkeyPatch, files: Files
) -> None:
    monkeypatch.setattr(child, "BEAT_S", 0.02)
    monkeypatch.setattr(child, "MISSED", 10**6)
    say = """print('{"state": "ready"}', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"""
    made = Process(monkeypatch, say)
    said = made.said()
    assert next(said) == Said("ready")
    monkeypatch.setattr(child, "MISSED", 3)
    assert list(said) == []
    assert (made.hung, made.ended()) == (True, -signal.SIGKILL)
    assert "found no word of it for" in run._cause(Said("ready"), -9, made)


def test_one_that_says_its_word_again_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "BEAT_S", 0.05)
    monkeypatch.setattr(child, "MISSED", 10**6)
    say = """[(print('{"state": "ready"}', flush=True), time.sleep(0.1)) for _ in range(6)]"""
    made = Process(monkeypatch, say)
    said = made.said()
    next(said)
    # Half of a second: not in one of its pauses, and less than all of them.
    monkeypatch.setattr(child, "MISSED", 10)
    assert len(list(said)) == 5
    assert (made.hung, made.ended()) == (False, 0)


def test_a_word_in_two_pieces_or_of_nonsense_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    say = """o = sys.stdout; o.write('[' * 99999 + '\\n{"state": "lo'); o.flush(); time.sleep(0.1)
o.write('ading"}\\n'); o.flush()"""
    made = Process(monkeypatch, say)
    assert list(made.said()) == [Said("loading")]


def test_a_quiet_line_is_quiet_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A model's chat template is one line of many kilobytes."""
    say = "os.write(2, b'<6>' + b'x' * 9000 + b'\\n' + b'y' * 3000 + b'\\nloud\\n<6>quiet\\n')"
    made = Process(monkeypatch, say)
    assert list(made.said()) == [] and made.ended() == 0
    assert capfd.readouterr().err == "y" * 3000 + "\nloud\n"
    assert list(made.loud) == ["y" * 2000, "loud"]
    assert [line[:5] for line in made.lines] == ["xxxxx", "yyyyy", "loud", "quiet"]


@pytest.mark.parametrize("ends", ["<6>unmute\\n", ""])
def test_what_is_said_of_a_clients_own_words_is_no_line_of_the_journal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], ends: str
) -> None:
    """Unless the process ends there."""
    say = f"os.write(2, b'<6>mute\\nparse: secret\\n{ends}')"
    made = Process(monkeypatch, say)
    assert list(made.said()) == [] and made.ended() == 0
    assert capfd.readouterr().err == ""
    assert list(made.lines) == ["parse: secret"]
    assert list(made.loud) == ([] if ends else ["parse: secret"])


def test_systemd_hears_of_each_state_and_of_readiness_once_it_is_true(
    files: Files, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"\0llamafleet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(0.05)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + address[1:])
        started(([Said("loading"), READY], [], -9))
        heard = []
        with pytest.raises(TimeoutError):
            while True:
                heard.append(systemd.recv(4096).decode())
    assert [("READY=1" in one) for one in heard].count(True) == 1
    assert heard[0] == "STATUS=loading"
    assert heard[-1].startswith("STATUS=failed: ")


def test_nobody_to_notify_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    notify("READY=1")
    assert settings.is_loopback("::1")
