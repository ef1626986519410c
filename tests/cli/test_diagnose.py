"""The command that tells why something failed: what it says and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafleet.protocol.job import STAMP
from tests.cli import run
from tests.cli.test_plan import command

FULL = "fatal error: x.o: No space left on device"
BROKEN = f"-- ok\n{FULL}\nERROR: Failed building wheel for llama-cpp-python\n"


def test_all_causes_are_told_with_line_and_fix(tmp_path: Path) -> None:
    log = tmp_path / "pip.log"
    log.write_text(BROKEN)
    result = run("diagnose", log)
    lines = result.output.splitlines()
    assert result.exit_code == 1
    assert lines[0] == f"{log}:2: {FULL}"
    assert lines[1].startswith("  cause: enospc: ")
    assert lines[2].startswith("  next: ")
    assert lines[3].startswith(f"{log}:3: ERROR: Failed building wheel")
    assert lines[4].startswith("  follows: wheel-build-failed: ")


def test_standard_input_as_json() -> None:
    result = run("diagnose", "-", "--json", stdin=BROKEN)
    told = json.loads(result.output)
    assert result.exit_code == 1
    assert (told["log"], told["wrong"], told["lines"]) == ("-", True, [])
    assert [(each["id"], each["number"], each["rank"]) for each in told["causes"]] == [
        ("enospc", 2, "cause"),
        ("wheel-build-failed", 3, "consequence"),
    ]


@pytest.mark.parametrize(
    "text", ["a\n", "Successfully installed x-1\n", "warning: y is deprecated\n"]
)
def test_nothing_wrong(text: str) -> None:
    result = run("diagnose", "-", stdin=text)
    assert (result.exit_code, result.output) == (0, "-: found nothing wrong\n")


def test_an_unknown_failure_is_told_in_the_compilers_own_lines() -> None:
    own = "x.c:3:1: error: frobnicator expected a cat"
    result = run("diagnose", "-", stdin=f"a\n{own}\n")
    assert result.exit_code == 1
    assert "a failure whose cause is not known" in result.output
    assert f"  {own}\n" in result.output


def test_what_powershell_wrote(tmp_path: Path) -> None:
    log = tmp_path / "pip.log"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        log.write_bytes(BROKEN.encode(encoding))
        assert "cause: enospc" in run("diagnose", log).output


@pytest.mark.parametrize(
    "line",
    [
        "ERROR",
        "bash: llama-server: command not found",
        "collect2: erreur: ld a retourné le statut de sortie 1",
        "x.cu:3:10: schwerwiegender Fehler: x.h: Datei oder Verzeichnis nicht gefunden",
        "gcc: 致命错误：没有输入文件",
        "Some check failed:",
    ],
)
def test_a_log_that_says_that_something_failed_is_never_called_well(line: str) -> None:
    result = run("diagnose", "-", stdin=f"a\n{line}\nb\n")
    assert result.exit_code == 1
    assert f"  {line}\n" in result.output


def test_a_terminals_codes_are_not_passed_on() -> None:
    result = run("diagnose", "-", stdin=f"\x1b]0;title\x07{FULL}\x1b[2J\n")
    assert result.exit_code == 1
    assert "\x1b" not in result.output and "\x07" not in result.output


def test_bad_input(tmp_path: Path) -> None:
    folder = run("diagnose", tmp_path)
    assert folder.exit_code == 2
    assert "can't be read" in folder.stderr


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_no_text_is_no_proof(text: str) -> None:
    result = run("diagnose", "-", stdin=text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith("found no text; next: COMMAND 2>&1 | llamafleet diagnose -\n")


def test_what_is_too_long_tells_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamafleet.cli.diagnose.MOST_BYTES", 3)
    log = tmp_path / "a log"
    log.write_text("abcd")
    assert f"next: tail -c 8M '{log}' | llamafleet diagnose -" in run("diagnose", log).stderr
    assert "next: COMMAND 2>&1 | tail -c 8M | lla" in run("diagnose", "-", stdin="abcd").stderr


def test_a_host_of_the_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inventory").write_text('lab = (["@local"], {"scope": "user"})\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    nothing = command(tmp_path, "diagnose", "@local")
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "@local: found no log of a failed job; next: " in nothing.stderr
    job = tmp_path / ".local" / "state" / "llamafleet" / "build" / "key"
    job.mkdir(parents=True)
    (job / STAMP).write_text('{"error": {"cause": "x"}}')
    (job / "build.log").write_text(BROKEN)
    known = command(tmp_path, "diagnose", "@local")
    assert known.returncode == 1, known.stderr
    assert known.stdout.startswith(f"@local:{job}/build.log:2: {FULL}\n  cause: enospc: ")


def test_no_such_host(tmp_path: Path) -> None:
    nothing = command(tmp_path, "diagnose", "gpu-x")
    assert nothing.returncode == 2
    assert "gpu-x: found no such file, and no inventory inventory; next: " in nothing.stderr
    (tmp_path / "inventory").write_text('lab = ["gpu-a"]\n')
    other = command(tmp_path, "diagnose", "gpu-x")
    assert other.returncode == 2
    assert "nor host in inventory; expected one of gpu-a; " in other.stderr
