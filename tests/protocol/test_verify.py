"""The configuration of a verification: every error, all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafleet.protocol import verify as verify_config
from llamafleet.protocol.verify import ConfigError

PATH = Path("/etc/llamafleet/verify.json")


def good() -> dict[str, Any]:
    return {
        "version": 1,
        "host": "gpu1",
        "inputs": {},
        "fingerprint": "f00",
        "backend": "cuda",
        "toolkit": "13.0",
        "prefix": "/opt/llamafleet/versions/f00",
        "stamp": "/var/lib/llamafleet/build/f00/stamp.json",
        "job": "/var/lib/llamafleet/verify/run",
        "results": "/var/lib/llamafleet/results",
        "models": "/var/lib/llamafleet/models",
        "model": "synthetic:7b-q4_0",
        "compute_capabilities": ["8.9"],
        "bench": {"prompt": 512, "gen": 128, "repetitions": 5},
        "context": 4096,
        "allow_cpu_only": False,
    }


def test_a_good_one_is_read() -> None:
    config = verify_config.parse(PATH, good())
    assert (config.prompt, config.gen, config.repetitions) == (512, 128, 5)
    assert config.compute_capabilities == ("8.9",)


@pytest.mark.parametrize("model", ["synthetic:160m-q4_0", "/models/m.gguf"])
def test_models(model: str) -> None:
    assert verify_config.parse(PATH, good() | {"model": model}).model == model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version: found 2"),
        ({"backend": "rocm"}, 'backend: found "rocm", expected cuda or cpu'),
        ({"toolkit": 13.0}, "toolkit: found 13.0, expected a version"),
        ({"toolkit": "13"}, 'toolkit: found "13"'),
        ({"prefix": "here"}, "prefix: found"),
        ({"model": "synthetic:9b-q4_0"}, "expected an absolute path"),
        ({"model": "m.gguf"}, "expected an absolute path"),
        # The plan has chosen by now.
        ({"model": "auto"}, "expected an absolute path"),
        ({"compute_capabilities": ["89"]}, "compute_capabilities: found"),
        ({"bench": {"prompt": 0, "gen": 1, "repetitions": 1}}, "bench.prompt: found 0"),
        ({"bench": 5}, "bench: found 5"),
        ({"context": True}, "context: found true"),
        ({"context": "4096"}, 'context: found "4096"'),
        ({"allow_cpu_only": "no"}, "allow_cpu_only: found"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        verify_config.parse(PATH, good() | change)
    assert said in str(error.value)
    assert str(PATH) in str(error.value)


@pytest.mark.parametrize("key", [key for key in good() if key != "version"])
def test_a_missing_value_is_named(key: str) -> None:
    data = good()
    del data[key]
    with pytest.raises(ConfigError, match=f"{key}: found nothing"):
        verify_config.parse(PATH, data)


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        verify_config.parse(PATH, {"version": 1})
    assert len(error.value.errors) >= len(good()) - 1


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_file_that_is_no_object_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "verify.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"verify\.json"):
        verify_config.load(path)
    path.write_text(json.dumps(good()))
    assert verify_config.load(path).host == "gpu1"
