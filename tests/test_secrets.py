"""A secret is planted wherever one can stand: nothing that is said or kept here has it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafleet import terminal
from llamafleet.history.files import write_json
from llamafleet.inventory import SettingsError, validate_fleet
from llamafleet.managed import by_path
from llamafleet.serving import Profile
from llamafleet.settings import SECRETIVE, Settings
from llamafleet.terminal import conceal, masked, masked_data, printable, secrets_of
from operations.files import tools
from operations.preflight import preflight
from tests.e2e.runs import checkout, llamafleet, pyinfra
from tests.hosts.recorded import load
from tests.operations.fake import GPU, FakeHost, fleet, rendered
from tests.test_settings import make_netrc

SECRET = "Zq7-unsaid-Xw4"
URL = f"https://me:{SECRET}@pypi.lab/simple"
FORMS = (URL, f"https://{SECRET}@pypi.lab", f"https://pypi.lab/?token={SECRET}", f"me {URL} x")


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test conceals, no other one knows."""
    monkeypatch.setattr(terminal, "_secrets", set())


def refused(**data: object) -> str:
    with pytest.raises(SettingsError) as error:
        validate_fleet({"gpu-a": data})
    return str(error.value)


@pytest.mark.parametrize("key", sorted(Settings.model_fields))
@pytest.mark.parametrize("form", FORMS)
def test_no_setting_takes_a_url_with_a_secret_nor_shows_it(key: str, form: str) -> None:
    """Each setting that there is, so that a new one is looked at by itself."""
    for value in (form, [form], {"CMAKE_CXX_FLAGS": form}, {form: "ON"}, (form,), form.encode()):
        assert SECRET not in refused(**{key: value}), value


@pytest.mark.parametrize("key", sorted(SECRETIVE))
def test_where_somebody_may_type_a_password_no_text_is_shown(key: str) -> None:
    for value in (SECRET, [SECRET], {"X": [SECRET]}, {f"X={SECRET}": "ON"}, f"a {SECRET}\n", 1.5):
        said = refused(**{key: value})
        assert SECRET not in said and "1.5" not in said


def test_settings_that_may_hold_one_are_known() -> None:
    named = {key for key in Settings.model_fields if key.endswith(("_url", "_options"))}
    assert named | {"proxy", "netrc", "serve", "api_key_file"} == SECRETIVE


@pytest.mark.parametrize("field", sorted(Profile.model_fields))
def test_no_field_of_a_profile_takes_a_url_with_a_secret_nor_shows_it(field: str) -> None:
    for value in (URL, [URL], {"a": URL}, {URL: 1}):
        sound = {} if field == "model" else {"model": "/srv/a.gguf"}
        assert SECRET not in refused(serve={"chat": sound | {field: value}}), value


def test_an_api_key_typed_in_the_place_of_its_file_is_not_shown() -> None:
    assert SECRET not in refused(serve={"chat": {"model": "/a.gguf", "api_key_file": SECRET}})


def test_a_mistyped_key_of_pyinfra_shows_no_value() -> None:
    said = refused(ssh_pasword=SECRET, _sudo_pasword=SECRET, colour={"token": SECRET}, jobs=0)
    assert len(said.splitlines()) == 4 and SECRET not in said


def test_secrets_of_an_inventory_are_known_by_the_names_of_their_keys() -> None:
    data = {"ssh_password": "one", "_env": {"HF_TOKEN": "two", "LANG": "C"}, "x_Secret": "three",
            "ssh_user": "me", 3: "x", "password_tries": 3}  # fmt: skip
    assert sorted(secrets_of(data)) == ["one", "three", "two"]  # type: ignore[arg-type]


def test_what_is_concealed_is_masked_in_any_form_of_text() -> None:
    conceal([SECRET, f"{SECRET}-longer", "short"])
    assert masked(f"<{SECRET}-longer> {SECRET}") == "<***> ***"
    assert printable(f"{SECRET}\x1b") == "***\\x1b"
    assert masked("short") == "short", "it would be found in every other word"
    data = {"a": [SECRET, {"b": (f"x{SECRET}",)}], "c": 1, "d": None}
    assert masked_data(data) == {"a": ["***", {"b": ["x***"]}], "c": 1, "d": None}


def test_what_is_kept_has_none(tmp_path: Path) -> None:
    conceal([SECRET])
    write_json(tmp_path / "run.json", {"reason": [f"pip said {URL}", f"sudo: {SECRET}"]})
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept == {"reason": ["pip said https://***@pypi.lab/simple", "sudo: ***"]}


@pytest.fixture
def secretive(tmp_path: Path) -> dict[str, Any]:
    """Data of a host with a secret in each place that takes one."""
    return {
        "netrc": str(make_netrc(tmp_path, f"machine pypi.lab login me password {SECRET}\n")),
        "ssh_password": f"{SECRET}1",
        "_sudo_password": f"{SECRET}2",
        "_env": {"HF_TOKEN": f"{SECRET}3"},
        "x_api_token": f"{SECRET}4",
    }


def holding(root: Path) -> list[Path]:
    """Files below a folder that have the secret, but for this one's copy."""
    return [
        path
        for path in root.rglob("*")
        if path.is_file()
        and path.name != Path(__file__).name
        and SECRET in path.read_text("latin1")
    ]


def test_the_netrc_comes_to_its_one_file_and_goes_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, secretive: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    host = FakeHost(GPU, **secretive)
    with fleet(monkeypatch, {"a": host}) as run:
        here = run.runs["a"]
        path = here.layout().netrc
        assert by_path(here.layout())[path].secret
        assert run.run(preflight, tools) == []
        files = rendered(here, "tools")
        here.fail(f"sudo: {SECRET}2; pip: {URL}")
    assert (
        [place for place, text in host.uploads.items() if SECRET.encode() in text]
        == [place for place in host.uploads if place.startswith(path)]
        != []
    )
    assert not [sent for sent in host.sent if SECRET in sent]
    # As it should be by then: nothing is to be done, and nothing is told of it.
    host = FakeHost(GPU, **secretive).files(files)
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(tools) == [] and host.sent == []
    host = FakeHost(GPU).files(files)
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(tools) == []
        assert [sent for sent in host.commands if path in sent] == [f"rm -f {path}"]
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err


def planted(folder: Path, data: dict[str, Any]) -> str:
    """An inventory of hosts that answer, one with a secret in what it says of itself."""
    hosts = []
    for name in ("rtx4090-garbage-smi", "rtx4090-580-ubuntu24"):
        text = load(name).text.replace("proxy login", f"proxy login http://me:{SECRET}@proxy:1")
        responses = {"llamafleet-snapshot": text.splitlines()}
        fake = {"fake_responses": responses, "fake_delay": 0, "fake_delay_jitter": 0}
        hosts.append((f"@fake/{name}", {**data, **fake}))
    (folder / "fleet").write_text(f"hosts = {hosts!r}\n")
    return "fleet"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield checkout(tmp_path)


def test_no_command_says_or_keeps_one(folder: Path, secretive: dict[str, Any]) -> None:
    inventory = planted(folder, secretive)
    said = ""
    for name in ("rtx4090-garbage-smi", "rtx4090-580-ubuntu24"):
        for more in ((), ("--json",)):
            done = llamafleet(folder, "plan", f"@fake/{name}", "--inventory", inventory, *more)
            assert done.returncode in (0, 1), done.stderr
            said += done.stdout + done.stderr
        done = llamafleet(folder, "snapshot", f"@fake/{name}", "--inventory", inventory)
        said += done.stdout + done.stderr
    options = ("--data", f"ssh_password={SECRET}5", "--data", f"x_y={SECRET}6")
    for mode in ("--dry", "-y"):
        run = pyinfra(folder, mode, "--limit", "@fake/rtx4090-garbage-smi", *options, inventory,
                      "deploy.py")  # fmt: skip
        assert "not understood" in run.output and "Traceback" not in run.output, run.output
        said += run.output
    for option in ("--results=results", "--json", "--run=all"):
        done = llamafleet(folder, "report", option)
        said += done.stdout + done.stderr
    assert "proxy login" in said and SECRET not in said
    assert list((folder / "results").rglob("*.json")) != []
    assert [path.name for path in holding(folder)] == ["fleet"]


def test_a_refused_inventory_says_none(folder: Path, secretive: dict[str, Any]) -> None:
    bad = {**secretive, "index_url": URL, "proxy": SECRET, "cmake_options": {"HF_TOKEN": SECRET}}
    inventory = planted(folder, bad)
    os.chmod(secretive["netrc"], 0o644)  # noqa: PTH101
    run = pyinfra(folder, "-y", inventory, "deploy.py")
    assert run.returncode != 0 and "netrc: found " in run.output and "mode 0644" in run.output
    done = llamafleet(folder, "plan", "@fake/rtx4090-garbage-smi", "--inventory", inventory)
    assert done.returncode == 2 and "index_url" in done.stderr
    assert SECRET not in run.output + done.stdout + done.stderr
    for option in (
        f"index_url={URL}",
        SECRET,
        f"proxy=[{SECRET}",
        f"x={{{SECRET}",
        f"netrc={SECRET}",
    ):
        done = llamafleet(folder, "plan", "tests/hosts/cpu-debian12.snapshot", "--set", option)
        assert done.returncode == 2 and SECRET not in done.stdout + done.stderr, done.stderr
