"""The configuration of a verification: every error, all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafleet.protocol import verify as verify_config
from llamafleet.protocol.verify import BenchSettings, ConfigError

PATH = Path("/etc/llamafleet/verify.json")


def good() -> dict[str, Any]:
    return {
        "version": 1,
        "host": "gpu1",
        "inputs": {
            "fingerprint": "f00",
            "driver": "580.159.04",
            "gpus": ["NVIDIA GeForce RTX 4090 GPU-0"],
            "model": "synthetic:7b-q4_0",
            "bench": {"prompt": 512, "gen": 128, "repetitions": 5},
            "context": 4096,
        },
        "backend": "cuda",
        "toolkit": "13.0",
        "prefix": "/opt/llamafleet/versions/f00",
        "stamp": "/var/lib/llamafleet/build/f00/stamp.json",
        "job": "/var/lib/llamafleet/verify/run",
        "results": "/var/lib/llamafleet/results",
        "models": "/var/lib/llamafleet/models",
        "compute_capabilities": ["8.9"],
        "allow_cpu_only": False,
    }


def with_inputs(**inputs: Any) -> dict[str, Any]:
    """A good one with other inputs."""
    return good() | {"inputs": good()["inputs"] | inputs}


def test_a_good_one_is_read() -> None:
    config = verify_config.parse(PATH, good())
    assert config.inputs.bench == BenchSettings(512, 128, 5)
    assert config.compute_capabilities == ("8.9",)
    assert str(config.latest) == "/var/lib/llamafleet/results/latest.json"


def test_one_of_the_code_before_is_read() -> None:
    """It said some of the inputs twice."""
    old = {"fingerprint": "f00", "model": "synthetic:7b-q4_0", "context": 4096}
    old["bench"] = {"prompt": 512, "gen": 128, "repetitions": 5}
    assert verify_config.parse(PATH, good() | old) == verify_config.parse(PATH, good())


@pytest.mark.parametrize("model", ["synthetic:160m-q4_0", "/models/m.gguf"])
def test_models(model: str) -> None:
    assert verify_config.parse(PATH, with_inputs(model=model)).inputs.model == model


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (good() | {"version": 2}, "version: found 2"),
        (good() | {"backend": "rocm"}, 'backend: found "rocm", expected cuda or cpu'),
        (good() | {"toolkit": 13.0}, "toolkit: found 13.0, expected a version"),
        (good() | {"toolkit": "13"}, 'toolkit: found "13"'),
        (good() | {"prefix": "here"}, 'prefix: found "here", expected an absolute path'),
        (with_inputs(model="synthetic:9b-q4_0"), "expected an absolute path"),
        (with_inputs(model="m.gguf"), "expected an absolute path"),
        # The plan has chosen by now.
        (with_inputs(model="auto"), "expected an absolute path"),
        (with_inputs(driver="?"), 'inputs.driver: found "?", expected a version'),
        (with_inputs(gpus="GPU-0"), "inputs.gpus: found"),
        (good() | {"compute_capabilities": ["89"]}, "compute_capabilities[0]: found"),
        (with_inputs(bench={"prompt": 0, "gen": 1, "repetitions": 1}), "bench.prompt: found 0"),
        (with_inputs(bench=5), "inputs.bench: found 5"),
        (with_inputs(context=True), "context: found true"),
        (with_inputs(context="4096"), 'context: found "4096"'),
        (good() | {"allow_cpu_only": "no"}, "allow_cpu_only: found"),
    ],
)
def test_a_wrong_value_is_named(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        verify_config.parse(PATH, data)
    assert said in str(error.value)
    assert str(PATH) in str(error.value)


@pytest.mark.parametrize("key", good())
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


def test_each_error_has_a_line_of_its_own() -> None:
    with pytest.raises(ConfigError) as error:
        verify_config.parse(PATH, good() | {"host": 5, "stamp": "here"})
    assert str(error.value).splitlines() == [
        f"{PATH}: host: found 5, expected text",
        f'{PATH}: stamp: found "here", expected an absolute path',
    ]
