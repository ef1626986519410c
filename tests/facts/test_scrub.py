"""A snapshot without names: each kind of name is gone, and the plan is the same one."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from llamafleet.facts.reader import parse
from llamafleet.facts.scrub import FAKES, scrub
from llamafleet.protocol.fingerprint import fingerprint
from tests.history import RESULT
from tests.hosts import recorded
from tests.hosts.record import record
from tests.hosts.recorded import NAMES, RecordedHost, load

UUID = "GPU-7376a1a3-f476-a257-ed5a-1c4f869d71c9"
"""Of NVIDIA/open-gpu-kernel-modules#352."""

SECRETS = {
    "host": "dgx-finance-07",
    "host, whole": "dgx-finance-07.hq.acme-bank.com",
    "user": "jdoe",
    "another user": "m.mustermann",
    "UUID": "7376a1a3-f476-a257-ed5a-1c4f869d71c9",
    "machine id": "9f86d081884c7d659a2feaa0c55ad015",
    "serial": "1654922006536",
    "MAC": "a4:bf:01:7c:22:9e",
    "address": "10.31.4.17",
    "address, IPv6": "fd12:3456:789a::17",
    "domain": "acme-bank",
    "mail": "ops-team",
    "group": "quant-research",
    "program": "train_secret_model",
    "signer": "former-name-9",
    "PDI": "0x8dcf1b7e4a5d5c2e",
}


def planted() -> str:
    """The 4090's recording with each of these in the places where they come."""
    text = load("rtx4090-580-ubuntu24").text
    changes = {
        "hostname=gpu-a": f"hostname={SECRETS['host']}",
        "user=root": f"user={SECRETS['user']}",
        "home=/root": f"home=/home/{SECRETS['user']}",
        "GPU-00000000-0000-0000-0000-000000000001": UUID,
        "#llamafleet-snapshot 1\n": f"Welcome to {SECRETS['host']}, {SECRETS['user']}!\n"
        "#llamafleet-snapshot 1\n",
    }
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    more = f"""machine_id={SECRETS["machine id"]}
account=1
account_groups=llamafleet {SECRETS["group"]} video
proxy=https_proxy	http://{SECRETS["address"]}:3128
proxy=no_proxy	localhost,.{SECRETS["host, whole"].partition(".")[2]},{SECRETS["address"]}
cuda_repository=/etc/apt/sources.list.d/mirror.acme-bank.com.list
extra=/home/{SECRETS["another user"]}/cuda
@begin kernel_log
 [    1.5] {SECRETS["host"]} kernel: NVRM: GPU 0000:01:00.0 Serial Number: {SECRETS["serial"]}
 [    2.5] NVRM: Xid (PCI:0000:01:00): 45, pid=2171, name={SECRETS["host, whole"]}
 [    3.5] mlx5 {SECRETS["MAC"]} {SECRETS["address, IPv6"]} {SECRETS["mail"]}@acme-bank.com
@end
module_signer={SECRETS["signer"]} Secure Boot Module Signature key
@begin smi_details
 GPU 00000000:01:00.0
     Serial Number                         : {SECRETS["serial"]}
     GPU PDI                               : {SECRETS["PDI"]}
 |    0   N/A  N/A            2171      C   .../{SECRETS["program"]}.py       61000MiB |
 |    0      1206    G   /opt/{SECRETS["program"]}                   175MiB |
@end
@begin deploy_lock	/run/llamafleet-deploy.json
 {{"owner": "{SECRETS["user"]}@{SECRETS["host"]}", "controller": "{SECRETS["machine id"]}"}}
@end
@begin owners
 81a4	{SECRETS["another user"]}	{SECRETS["group"]}	/etc/llamafleet/llamafleet.env
@end
complete=1
"""
    assert text.count("complete=1\n") == 1
    return text.replace("complete=1\n", more)


@pytest.mark.parametrize("kind", SECRETS)
def test_no_name_is_left(kind: str) -> None:
    text = planted()
    assert SECRETS[kind] in text
    assert SECRETS[kind].lower() not in scrub(text).text.lower()


def test_what_was_the_same_stays_the_same_and_the_rest_is_kept() -> None:
    text = scrub(planted()).text
    fake = FAKES["uuid"].format(1)
    assert text.count(f"GPU-{fake}") == planted().count(UUID)
    assert "home=/home/user-1\n" in text and "user=user-1\n" in text
    assert "kernel=6.8.0-88-generic\n" in text and "580.159.04" in text
    assert "0000:01:00.0" in text and "account_groups=llamafleet user-" in text
    before, after = parse(planted().split("\n")), parse(text.split("\n"))
    assert (before.driver.packages, before.toolkits) == (after.driver.packages, after.toolkits)


def test_twice_is_once() -> None:
    once = scrub(planted()).text
    assert scrub(once).text == once and scrub(planted()).text == once


@pytest.mark.parametrize("name", ["5.15.153.1-microsoft-standard-WSL2", "6.11.0.1"])
def test_a_version_is_no_address(name: str) -> None:
    text = load("rtx4090-580-ubuntu24").text.replace("kernel=6.8.0-88-generic", f"kernel={name}")
    assert f"kernel={name}\n" in scrub(text).text


def test_a_host_that_is_called_like_a_part_of_the_format() -> None:
    text = load("rtx4090-580-ubuntu24").text.replace("hostname=gpu-a", "hostname=ubuntu")
    scrubbed = scrub(text).text
    assert "hostname=host-1\n" in scrubbed and "ID=ubuntu" in scrubbed


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_the_same(name: str) -> None:
    host = load(name)
    scrubbed = scrub(host.text)
    expected = host.explanation
    for real, fake in sorted(scrubbed.names.items(), key=lambda pair: -len(pair[0])):
        expected = re.sub(rf"(?<!\w){re.escape(real)}(?!\w)", fake, expected)
    assert replace(host, text=scrubbed.text).explanation == expected


def test_the_key_of_a_result_goes_with_the_uuids() -> None:
    inputs = replace(RESULT.inputs, gpus=(f"NVIDIA GeForce RTX 4090 {UUID}",))
    result = replace(RESULT, inputs=inputs, key=fingerprint(asdict(inputs)))
    lines = json.dumps(asdict(result), indent=1).split("\n")
    block = "".join(f" {line}\n" for line in lines)
    text = planted().replace("complete=1\n", f"@begin latest\tx\n{block}@end\ncomplete=1\n")
    after = parse(scrub(text).text.split("\n")).result
    assert after and after.key == fingerprint(asdict(after.inputs)) != result.key  # type: ignore[union-attr]


def test_a_file_becomes_a_recorded_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "attached.txt"
    file.write_text(planted(), encoding="utf-8")
    host = record(file, "new", "a host", "somewhere", tmp_path)
    written = "".join(path.read_text("utf-8") for path in tmp_path.glob("new*"))
    assert not [secret for secret in SECRETS.values() if secret in written]
    described = yaml.safe_load((tmp_path / "new.yaml").read_text("utf-8"))
    assert described["base"] == "new.snapshot" and described["expect"]["backend"] == "cuda"
    assert (tmp_path / "golden" / "new.txt").read_text("utf-8") == host.explanation
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    assert load("new") == RecordedHost("new", host.text, {}, described["expect"])
    with pytest.raises(FileExistsError):
        record(file, "new", "again", "somewhere", tmp_path)
