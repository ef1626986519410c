"""Dockerfile.rtx4090 says nothing twice: what it must name is what the code names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from llamafleet.cli.image import ARGUMENTS
from llamafleet.cli.main import main
from llamafleet.image.make import CODE, STATE
from llamafleet.layout import USER, Layout
from llamafleet.plans.container import CONFIG, MODELS
from llamafleet.serving import DEFAULT_PORT
from llamafleet.tables import parse_version
from llamafleet.tables.cpu_baselines import BASELINES
from llamafleet.tables.gpus import gpu_by_name
from llamafleet.tables.releases import releases
from llamafleet.tables.toolkits import wheel_toolkits

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile.rtx4090").read_text(encoding="utf-8")
LINES = [
    line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")
]
AT = Layout.system()


def arguments() -> dict[str, str]:
    """Build arguments and their defaults."""
    told = (line.removeprefix("ARG ") for line in LINES if line.startswith("ARG "))
    return dict(one.split("=", 1) for one in told if "=" in one)


def last(word: str) -> str:
    """Of the last instruction of that kind."""
    return [line for line in LINES if line.startswith(f"{word} ")][-1].removeprefix(f"{word} ")


def test_the_commands_of_the_guide_stand_in_it() -> None:
    assert "docker build -f Dockerfile.rtx4090 -t llama-rtx4090 ." in TEXT
    assert "docker run --gpus all -p 8000:8000 llama-rtx4090" in TEXT


def test_no_version_and_no_hash_of_what_is_built() -> None:
    assert not re.search(r"[0-9a-f]{32}", TEXT)
    assert not any(row.version in TEXT for row in releases())
    assert "-DGGML" not in TEXT and "CMAKE_ARGS" not in TEXT


def test_its_defaults_are_those_of_an_rtx_4090() -> None:
    args = arguments()
    card = gpu_by_name("NVIDIA GeForce RTX 4090")
    assert card and args["CUDA_ARCHITECTURES"] == card.capability.replace(".", "")
    oldest = min((row.cuda for row in wheel_toolkits()), key=parse_version)
    assert args["CUDA_VERSION"] == oldest
    assert args["CPU_BASELINE"] in BASELINES
    assert args["BACKEND"] == "cuda"


def test_its_paths_are_those_of_a_host() -> None:
    entry = json.loads(last("ENTRYPOINT"))
    assert entry == [
        *(f"{AT.current}/bin/python", "-I", AT.zipapp),
        *("container", "--config", f"{AT.etc}/{CONFIG}"),
    ]
    health = json.loads(last("HEALTHCHECK").split("CMD ", 1)[1])
    assert health == [*entry, "--health"]
    assert last("EXPOSE") == str(DEFAULT_PORT)
    assert f"/image/{CODE}/ /" in TEXT and f"/image/{STATE}/ {AT.state}/" in TEXT
    assert AT.prefix in TEXT and USER in TEXT
    assert MODELS == "/models"


def test_what_serves_is_not_root_and_can_not_change_the_code() -> None:
    assert last("USER") == "10001:10001"
    copies = [line for line in LINES if line.startswith("COPY --from=build")]
    assert [re.findall(r"--chown=(\S+)", line) for line in copies] == [["0:0"], ["10001:10001"]]


def test_its_steps_are_commands_that_there_are() -> None:
    used = re.findall(r"llamafleet image (\w+) (.*?)(?=&&|$)", "\n".join(LINES), re.MULTILINE)
    assert [step for step, _ in used] == ["check", "toolkit", "build", "gather"]
    for step, rest in used:
        options = re.findall(r"--[\w-]+", rest)
        told = CliRunner().invoke(main, ["image", step, *(f"{one}=0" for one in options), "--help"])
        assert told.exit_code == 0, told.output
        assert all(one in told.output for one in options)


def test_check_build_and_gather_are_told_the_same() -> None:
    """Else what is gathered would be another plan's, and what is checked none."""
    text = "\n".join(LINES)
    told = [
        re.findall(rf"llamafleet image {step} ([^&\n]*)", text)
        for step in ("check", "build", "gather")
    ]
    check, build, gather = ([words.split() for words in one] for one in told)
    assert check == build == gather and len(build) == 1


def test_an_argument_has_its_default_in_every_stage_that_uses_it() -> None:
    """One in front of the first FROM is unset in a stage that does not name it."""
    stages = "\n".join(LINES).split("\nFROM ")[1:]
    for stage in stages:
        used = set(re.findall(r"\$\{?([A-Z_]+)", stage.split("\n", 1)[1]))
        assert used <= set(re.findall(r"^ARG (\w+)$", stage, re.MULTILINE)), stage
    assert set(arguments()) == {"BASE", *ARGUMENTS.values()}


def test_no_toolkit_is_fetched_before_all_arguments_are_judged() -> None:
    stages = ["FROM " + one for one in "\n".join(LINES).split("\nFROM ")[1:]]
    (checked,) = (one for one in stages if "llamafleet image check" in one)
    (build,) = (one for one in stages if "llamafleet image toolkit" in one)
    name = re.match(r"FROM \S+ AS (\w+)", checked)
    assert name and build.index(f"COPY --from={name[1]} ") < build.index("llamafleet image")


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--architectures", "native", "--cuda", "13.0"], "CUDA_ARCHITECTURES: found 'native'"),
        (["--architectures", "0", "--cuda", "13.0"], "CUDA_ARCHITECTURES: found '0'"),
        (["--architectures", "89", "--cuda", "99.9"], "CUDA_VERSION: found '99.9'"),
        (["--architectures", "89", "--cuda", "x"], "CUDA_VERSION: found 'x'"),
        (
            ["--architectures", "89", "--cuda", "13.0", "--baseline", "i386"],
            "CPU_BASELINE: found 'i386'",
        ),
        (
            ["--architectures", "89", "--cuda", "13.0", "--llama", "0.1.0"],
            "LLAMA_VERSION: found '0.1.0'",
        ),
        (["--backend", "rocm"], "Invalid value for '--backend': 'rocm'"),
    ],
)
@pytest.mark.parametrize("step", ["check", "build"])
def test_a_bad_build_argument_is_refused_by_its_name_before_anything_is_read(
    step: str, args: list[str], word: str
) -> None:
    told = CliRunner().invoke(main, ["image", step, *args])
    assert told.exit_code == 2, told.output
    assert word in told.output and "--set" not in told.output and "_version" not in told.output


def test_a_toolkit_that_has_no_code_for_the_gpu_is_refused_by_the_arguments_name() -> None:
    told = CliRunner().invoke(main, ["image", "check", "--architectures", "50", "--cuda", "13.0"])
    assert told.exit_code == 2, told.output
    assert "found CUDA_VERSION = '13.0'" in told.output and "_version" not in told.output


def test_what_is_checked_is_told_and_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafleet.image.make.Maker.tools", lambda self: pytest.fail("done"))
    args = ["--architectures", "89", "--cuda", "13.0", "--baseline", "x86-64-v3"]
    told = CliRunner().invoke(main, ["image", "check", *args])
    assert told.exit_code == 0, told.output
    assert "CUDA 13.0" in told.output and "sm_89" in told.output


def test_the_context_is_the_code_alone() -> None:
    """No environment, no results and no key of whoever builds goes into a layer."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert kept == {
        *("LICENSE", "README.md", "llamafleet", "pyproject.toml", "setup.sh", "templates"),
        "uv.lock",
    }
