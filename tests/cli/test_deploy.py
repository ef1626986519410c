"""The commands `llamafleet check` and `llamafleet deploy`, as an administrator types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.runs import checkout, llamafleet
from tests.operations.test_fleet import NO_GPU, fleet

WRONG = {"accelerator": "gpu", "jobs": 0, "toolkit_metod": "wheels"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("fresh"))


def test_a_sound_inventory_is_said_to_be_so(folder: Path) -> None:
    # Port 9 answers nowhere: no host is connected to.
    hosts = [(f"10.231.7.{number}", {"ssh_port": 9}) for number in range(2)]
    (folder / "fleet").write_text(f"hosts = {hosts!r}\n")
    done = llamafleet(folder, "check", "fleet")
    assert (done.returncode, done.stdout) == (0, "fleet: the settings of 2 hosts are sound\n")
    assert llamafleet(folder, "check").returncode == 0, "the inventory that is there"


def test_all_errors_of_all_hosts_are_said_at_once(folder: Path) -> None:
    hosts = [("10.231.7.1", WRONG), ("10.231.7.2", WRONG)]
    (folder / "fleet").write_text(f"hosts = {hosts!r}\n")
    done = llamafleet(folder, "check", "fleet")
    *lines, last = done.stderr.splitlines()
    assert done.returncode == 2 and last == "Error: fleet is refused: 6 errors"
    assert [line.split(": ")[:2] for line in lines] == [
        [f"host 10.231.7.{number}", key]
        for number in (1, 2)
        for key in ("toolkit_metod", "accelerator", "jobs")
    ]


def test_a_version_that_is_not_known_is_looked_up_and_its_hash_is_shown(
    folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "llama-cpp-python/index.html"
    page.parent.mkdir()
    page.write_text(f'<a href="llama_cpp_python-0.3.9999.tar.gz#sha256={"ab" * 32}">x</a>')
    data = {"llama_version": "0.3.9999", "index_url": f"file://{tmp_path}"}
    (folder / "fleet").write_text(f"hosts = {[('10.231.7.1', data)]!r}\n")
    done = llamafleet(folder, "check", "fleet")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"llama-cpp-python 0.3.9999: sha256 {'ab' * 32} (looked up at file://{tmp_path})",
            "  not known here: its options are first compared on the host; "
            "next: llamafleet upstream 0.3.9999",
            "fleet: the settings of 1 hosts are sound",
        ],
    )
    page.write_text("<a>none</a>")
    for command in (["check", "fleet"], ["deploy", "--inventory", "fleet", "--dry"]):
        done = llamafleet(folder, *command)
        assert done.returncode == 2, done.stderr
        assert "host 10.231.7.1: llama_sha256: found none of 0.3.9999" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "found no such file"),
        ("x = 1\n", "found no host in it"),
        ("hosts = [\n", "fleet can't be read: "),
        ("exit()\n", "fleet: found that it ends python (SystemExit(None))"),
        ("raise SystemExit(0)\n", "fleet: found that it ends python (SystemExit(0))"),
        ("raise SystemError('\\x1b[2J')\n", "fleet can't be read: "),
    ],
)
def test_an_inventory_that_is_none_is_bad_input(folder: Path, text: str | None, said: str) -> None:
    (folder / "fleet").unlink(missing_ok=True)
    if text is not None:
        (folder / "fleet").write_text(text)
    done = llamafleet(folder, "check", "fleet")
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "\x1b[2J" not in done.stderr
    assert llamafleet(folder, "deploy", "--inventory", "fleet", "--dry").returncode == 2


def test_a_deploy_is_the_run_of_pyinfra(folder: Path) -> None:
    inventory = fleet(folder, {"a": NO_GPU, "b": NO_GPU})
    done = llamafleet(folder, "deploy", "-y", "--inventory", inventory, "--limit", "@fake/b")
    assert done.returncode == 1, done.stderr
    assert f"as: pyinfra --limit @fake/b -y {inventory} deploy.py" in done.stderr
    assert "1 of 2 hosts" in done.stderr and "@fake/b FAIL  gpu: found no" in done.stderr
    dry = llamafleet(folder, "deploy", "--inventory", inventory, "--dry")
    assert dry.returncode == 1 and "no NVIDIA GPU" in dry.stderr


def test_a_deploy_outside_the_project_says_where_to_go(folder: Path) -> None:
    done = llamafleet(folder / "templates", "deploy")
    assert done.returncode == 2 and "deploy.py: found no such file" in done.stderr
