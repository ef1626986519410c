"""Settings: what an inventory may say, and the line that each mistake gets."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.connectors.chroot import ChrootConnector
from pyinfra.connectors.docker import DockerConnector
from pyinfra.connectors.dockerssh import DockerSSHConnector

from llamafleet.inventory import SettingsError, pyinfra_keys, read_supplies, validate_fleet
from llamafleet.plans.supplies import NO_SUPPLIES, Supplies
from llamafleet.render import _quotable
from llamafleet.settings import LLAMA_VERSION, Settings
from llamafleet.tables.releases import releases
from llamafleet.wheelhouse import manifest as house

ZEROS = "0" * 64
BINARY_KEY = b"\x98\x06\x04\x00\x00\x00\x00\x01"
"""The packet of a key that could sign nothing: version, time and algorithm alone."""
PUBLIC_KEY = (
    b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n"
    + base64.encodebytes(BINARY_KEY)
    + b"-----END PGP PUBLIC KEY BLOCK-----\n"
)


def lines_of(**data: Any) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        validate_fleet({"gpu-a": data})
    assert str(refused.value) == "\n".join(refused.value.lines)
    return refused.value.lines


def settings_of(**data: Any) -> Settings:
    return validate_fleet({"gpu-a": data})["gpu-a"]


def test_no_data_is_the_defaults() -> None:
    assert settings_of() == Settings()
    assert Settings().accelerator == "cuda"


def test_every_setting_in_an_inventory_s_own_types(tmp_path: Path) -> None:
    key = tmp_path / "mirror.asc"
    key.write_bytes(PUBLIC_KEY)
    data = {
        "scope": "system",
        "accelerator": "auto",
        "compute_capabilities": ["8.9", "12.0"],
        "toolkit_version": "13.0",
        "toolkit_method": "present",
        "toolkit_url": "https://mirror.example/nvidia",
        "toolkit_key": str(key),
        "toolkit_root": "/usr/local/cuda-13.0",
        "host_compiler": "/usr/bin/g++-12",
        "allow_unsupported_compiler": True,
        "compiler_forced": True,
        "llama_version": "0.3.35",
        "llama_sha256": ZEROS,
        "cmake_options": {"LLAVA_BUILD": "ON", "CMAKE_CXX_FLAGS": "-O3 -g"},
        "jobs": 4,
        "build_sharing": "wheel",
        "cpu_baseline": "x86-64-v3",
        "python": "/usr/bin/python3.12",
        "install_packages": False,
        "hold_driver": True,
        "rebuild": True,
        "runtime": "venv",
        "image": None,
        "reboot": "allow",
        "model": "/srv/models/llama-2-7b.Q4_0.gguf",
        "bench_prompt": 256,
        "bench_gen": 64,
        "bench_repetitions": 3,
        "context": 2048,
        "gpus": ["GPU-5f3d2c1b-0000-0000-0000-000000000000", "0000:01:00.0", "41:00.0", "2"],
        "busy_minutes": 10,
        "allow_busy": True,
        "verify_schedule": "Mon *-*-* 03:00:00",
        "metrics_folder": "/var/lib/prometheus/node-exporter",
        "wheelhouse": None,
        "index_url": "https://pypi.example:8443/simple",
        "proxy": "http://proxy.example:3128",
        "netrc": str(make_netrc(tmp_path)),
        "model_source": "controller",
        "model_downloads": 2,
        "models_kept": 3,
        "model_timeout_minutes": 90,
        "build_timeout_minutes": 60,
        "compiler_cache": "ccache",
        "compiler_cache_gb": 20,
        "compiler_cache_url": "redis://cache.example:6380/2",
        "verify_timeout_minutes": 10,
        "verify_pauses_serving": True,
        "serve": {"chat": {"model": "/srv/a.gguf", "gpus": ["0"], "limits": {"waiting": 8}}},
    }
    assert set(data) == set(Settings.model_fields)
    made = settings_of(**data)
    lists = {"compute_capabilities": ("8.9", "12.0"), "gpus": tuple(data["gpus"])}
    serve = made.model_dump(exclude_unset=True)["serve"]
    assert serve == {"chat": data["serve"]["chat"] | {"gpus": ("0",)}}
    assert made.model_dump(exclude={"serve"}) == {
        key: value for key, value in (data | lists).items() if key != "serve"
    }


def test_keys_of_pyinfra_and_of_the_user_pass() -> None:
    assert settings_of(_sudo=True, ssh_user="ubuntu", ssh_port=22, x_rack="b7") == Settings()


@pytest.mark.parametrize(
    ("connector", "name"),
    [(ChrootConnector, "/srv/root"), (DockerConnector, "debian"), (DockerSSHConnector, "h:debian")],
)
def test_keys_that_connectors_derive_from_a_name_are_known(connector: Any, name: str) -> None:
    for _, data, _ in connector.make_names_data(name):
        assert data and set(data) <= pyinfra_keys()


TYPED = [
    ("toolkit_version", "13.0", "13.0"),
    ("compute_capabilities", "8.9", ("8.9",)),
    ("compute_capabilities", '["8.9", 9.0]', ("8.9", "9.0")),
    ("jobs", "3", 3),
    ("gpus", "0", ("0",)),
    ("gpus", '[0, "01:00.0"]', ("0", "01:00.0")),
    ("gpus", "null", None),
    ("gpus", '["00000000:1B:00.0"]', ("00000000:1B:00.0",)),
    ("jobs", "null", None),
    ("install_packages", "false", False),
    ("accelerator", "cpu", "cpu"),
    ("llama_sha256", ZEROS[:-1] + "a", ZEROS[:-1] + "a"),
    ("cmake_options", '{"LLAVA_BUILD": "ON"}', {"LLAVA_BUILD": "ON"}),
    ("model", "synthetic:160m-q4_0", "synthetic:160m-q4_0"),
]


@pytest.fixture(scope="module")
def parsed() -> dict[str, object]:
    """What pyinfra makes of each text that is typed after --data KEY=."""
    program = (
        "import json, sys; from pyinfra_cli.util import parse_cli_arg; "
        "json.dump({text: parse_cli_arg(text) for text in sys.argv[1:]}, sys.stdout)"
    )
    argv = [sys.executable, "-c", program, *(text for _, text, _ in TYPED)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    values: dict[str, object] = json.loads(done.stdout)
    return values


@pytest.mark.parametrize(("key", "text", "value"), TYPED)
def test_values_as_pyinfra_parses_them_from_its_command_line(
    parsed: dict[str, object], key: str, text: str, value: object
) -> None:
    assert getattr(settings_of(**{key: parsed[text]}), key) == value


def hidden(characters: int) -> str:
    """How a value is told that may hold a password."""
    return f"{characters} characters (not shown: it may hold a password)"


def make_netrc(
    folder: Path, text: str = "machine h login l password p\n", mode: int = 0o600
) -> Path:
    file = folder / "netrc"
    file.write_text(text)
    file.chmod(mode)
    return file


CAPABILITY = "a compute capability from 5.0 to 12.9"
HOST_PATH = "an absolute path on the host without blanks, quotes, $, %, : and commas"
SHA = "64 hex digits in lower case"
TOOLKIT = 'major.minor such as "13.0"'
NAMES = 'names and texts such as {"LLAVA_BUILD": "ON"}'
GPUS = 'a list of UUIDs, bus ids or indices such as ["GPU-5f3d...", "0000:01:00.0", "1"], or None'
SCHEDULE = 'a time as of systemd\'s OnCalendar such as "weekly", or None'
URL = "an http://, https:// or file:/// URL"
VERSION = f'a released version such as "{LLAMA_VERSION}"'


@pytest.mark.parametrize(
    ("key", "value", "found", "allowed"),
    [
        ("scope", "root", "'root'", "system or user"),
        ("accelerator", "rocm", "'rocm'", "cuda, cpu or auto"),
        ("accelerator", 1, "1", "cuda, cpu or auto"),
        ("toolkit_version", "latest", "'latest'", TOOLKIT),
        ("toolkit_version", "13", "'13'", TOOLKIT),
        ("toolkit_version", 13, "13 (int)", TOOLKIT),
        ("toolkit_method", "conda", "'conda'",
         "auto, present, wheels, apt, dnf, runfile or distro"),
        ("toolkit_root", "cuda-13.0", "'cuda-13.0'", HOST_PATH),
        ("toolkit_root", "/opt/my cuda", "'/opt/my cuda'", HOST_PATH),
        ("host_compiler", "g++", "'g++'", HOST_PATH),
        ("python", "/usr/bin/$PY", "'/usr/bin/$PY'", HOST_PATH),
        ("python", "/usr/bin/python3\n", r"'/usr/bin/python3\n'", HOST_PATH),
        ("allow_unsupported_compiler", "yes", "'yes' (str)", "true or false"),
        ("compiler_forced", 1, "1 (int)", "true or false"),
        ("install_packages", None, "None (NoneType)", "true or false"),
        ("hold_driver", "driver", "'driver' (str)", "true or false"),
        ("reboot", True, "True", "never or allow"),
        ("reboot", "always", "'always'", "never or allow"),
        ("llama_version", "latest", "'latest'", VERSION),
        ("llama_version", "0.3.036", "'0.3.036'", "0.3.36, as that release is named"),
        ("llama_version", "00.3.36", "'00.3.36'", "0.3.36, as that release is named"),
        ("llama_version", "0.3.36.post01", "'0.3.36.post01'", 
         "0.3.36.post1, as that release is named"),
        ("llama_sha256", "832db0", "'832db0'", SHA),
        ("llama_sha256", "G" * 64, repr("G" * 64), SHA),
        ("cmake_options", "-DLLAVA_BUILD=ON", f"{hidden(16)} (str)",
         'names and texts such as {"LLAVA_BUILD": "ON"}'),
        ("jobs", 0, "0", "a whole number of jobs from 1 to 1024"),
        ("jobs", "4", "'4' (str)", "a whole number of jobs from 1 to 1024"),
        ("jobs", True, "True (bool)", "a whole number of jobs from 1 to 1024"),
        ("gpus", [], "()", GPUS),
        ("busy_minutes", 121, "121", "a whole number of minutes from 0 to 120"),
        ("allow_busy", 1, "1 (int)", "true or false"),
        ("bench_prompt", 0, "0", "a whole number of tokens from 1 to 65536"),
        ("bench_gen", 65537, "65537", "a whole number of tokens from 1 to 65536"),
        ("bench_repetitions", 1, "1", "a whole number of repetitions from 2 to 100"),
        ("context", 255, "255", "a whole number of tokens from 256 to 1048576"),
        ("compiler_cache", "sccache", "'sccache'", "off or ccache"),
        ("compiler_cache", True, "True", "off or ccache"),
        ("compiler_cache_gb", 0, "0", "a whole number of GB from 1 to 1000"),
        ("compiler_cache_gb", "5G", "'5G' (str)", "a whole number of GB from 1 to 1000"),
        ("model_source", "peer", "'peer'", "host or controller"),
        ("model_downloads", 0, "0", "a whole number of hosts from 1 to 1000"),
        ("models_kept", -1, "-1", "a whole number of models from 0 to 100"),
        ("model_timeout_minutes", 10081, "10081", "a whole number of minutes from 1 to 10080"),
        ("build_timeout_minutes", 0, "0", "a whole number of minutes from 1 to 1440"),
        ("verify_timeout_minutes", 1.5, "1.5 (float)", "a whole number of minutes from 1 to 1440"),
        ("verify_schedule", "$(reboot)", "'$(reboot)'", SCHEDULE),
        ("verify_schedule", "weekly\nUser=root", r"'weekly\nUser=root'", SCHEDULE),
        ("verify_schedule", "sometimes", "'sometimes'", SCHEDULE),
        ("verify_schedule", "Fri..Mon", "'Fri..Mon'", SCHEDULE),
        ("verify_schedule", "", "''", SCHEDULE),
        ("index_url", "pypi.example/simple", hidden(19), URL),
        ("index_url", "ftp://pypi.example", hidden(18), URL),
        ("index_url", "https://", hidden(8), URL),
        ("index_url", "https://p\xffpi.example", hidden(20), URL),
        ("index_url", "https://pypi.example/" + "a" * 2000, hidden(2021), URL),
        ("toolkit_root", "/opt/cuda:/usr", "'/opt/cuda:/usr'", HOST_PATH),
        ("python", "/" + "p" * 5000, f"'/{'p' * 98}... (5003 characters)", HOST_PATH),
        ("wheelhouse", "", "''",
         "a folder on the controller made by `llamafleet wheelhouse build`"),
        ("compute_capabilities", [], "[]",
         'a list of compute capabilities such as ["8.9"], or no key'),
        ("compute_capabilities", None, "None",
         'a list of compute capabilities such as ["8.9"], or no key'),
        ("compute_capabilities", ["8.9", "12.0", "8.9"], "['8.9', '12.0', '8.9']",
         "each compute capability once"),
        ("compute_capabilities", ["8.9"] * 33, f"{str(['8.9'] * 33)[:100]}... (231 characters)",
         'a list of compute capabilities such as ["8.9"], or no key'),
        ("compute_capabilities", 89, "89 (int)",
         'a list of compute capabilities such as ["8.9"], or no key'),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line(key: str, value: object, found: str, allowed: str) -> None:
    assert lines_of(**{key: value}) == [f"host gpu-a: {key}: found {found}, allowed: {allowed}"]


@pytest.mark.parametrize(
    "value",
    ["redis://", "redis://u:hunter2@h", "rediss://h", "http://h", "redis://h:0", "redis://h:65536",
     "redis://h/a", "redis://h/1|read-only=true", "redis://h read-only", "redis://[::1]",
     "redis://h\n", "redis+unix:/s", 6379],
)  # fmt: skip
def test_a_shared_cache_is_named_without_a_password(value: object) -> None:
    lines = lines_of(compiler_cache="ccache", compiler_cache_url=value)
    assert len(lines) == 1 and "hunter2" not in lines[0]
    assert lines[0].startswith("host gpu-a: compiler_cache_url: found ")
    assert lines[0].endswith("without user and password: the setting netrc takes them")


def test_a_shared_cache_without_a_cache_is_refused() -> None:
    assert lines_of(compiler_cache_url="redis://h") == [
        "host gpu-a: compiler_cache_url: found 'redis://h', allowed: "
        'compiler_cache = "ccache" beside it'
    ]


@pytest.mark.parametrize("value", ["4.9", "13.0", "0.0"])
def test_capabilities_out_of_range(value: str) -> None:
    assert lines_of(compute_capabilities=["8.9", value]) == [
        f"host gpu-a: compute_capabilities[1]: found '{value}', allowed: {CAPABILITY}"
    ]


@pytest.mark.parametrize("value", ["H100", "GPU-", "1b:00", "100", "GPU-5F3D2C1B", "", True, 1.5])
def test_what_is_no_name_of_a_gpu_is_one_line(value: object) -> None:
    (line,) = lines_of(gpus=["0", value])
    assert line.startswith(f"host gpu-a: gpus[1]: found {value!r}") and line.endswith(GPUS)


def test_more_gpus_than_a_host_has_are_refused() -> None:
    (line,) = lines_of(gpus=["0"] * 65)
    assert line.endswith(GPUS)


@pytest.mark.parametrize("value", ["89", "sm_89", "8.9a", "native", "8.90"])
def test_capabilities_in_another_form(value: str) -> None:
    (line,) = lines_of(compute_capabilities=[value])
    assert line.startswith(f"host gpu-a: compute_capabilities[0]: found '{value}', allowed: ")


@pytest.mark.usefixtures("frozen_tables")
@pytest.mark.parametrize("value", ["12.7", "13.9", "14.0", "10.2"])
def test_a_toolkit_that_was_never_released(value: str) -> None:
    (line,) = lines_of(toolkit_version=value)
    assert line.startswith(
        f"host gpu-a: toolkit_version: found '{value}', allowed: one of 11.8, 12"
    )
    assert "13.5 (impossible version" in line


@pytest.mark.parametrize(
    "value",
    ["llama.gguf", "/srv/llama.bin", "/srv/my llama.gguf", "synthetic:3b-q4_0", "synthetic:7b-q4",
     "synthetic:7b", "Auto", "https://hub.example/llama.gguf"],
)  # fmt: skip
def test_models_that_are_none(value: str) -> None:
    (line,) = lines_of(model=value)
    assert line.startswith(f"host gpu-a: model: found '{value}', allowed: auto, the absolute path")
    assert "tiny, 160m, 1b, 7b, 8b, 13b" in line and "q4_0, q8_0, f16" in line


@pytest.mark.parametrize("value", ["synthetic:tiny-f16", "synthetic:13b-q8_0", "/a/b.gguf", "auto"])
def test_models_that_are_some(value: str) -> None:
    assert settings_of(model=value).model == value


PLACES = "leaving it out (a library that lies elsewhere is neither found nor verified)"
TOOLS = "the settings toolkit_root and host_compiler"
NO_SECRET = "no secret: options are in logs and results"


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("LLAMA_CUBLAS", 'accelerator = "cuda" (CMake ends in FATAL_ERROR'),
        ("LLAMA_CUDA", 'accelerator = "cuda" (deprecated'),
        ("GGML_CUDA", "the setting accelerator"),
        ("ggml_cuda", "the setting accelerator"),
        ("CMAKE_CUDA_ARCHITECTURES", "the setting compute_capabilities"),
        ("CMAKE_CUDA_COMPILER", "the setting toolkit_root"),
        ("CUDAToolkit_ROOT", "the setting toolkit_root"),
        ("CMAKE_CUDA_COMPILER_FORCED", "the setting compiler_forced"),
        ("CMAKE_CUDA_HOST_COMPILER", "the setting host_compiler"),
        ("CMAKE_CXX_COMPILER", "the setting host_compiler"),
        ("CMAKE_C_COMPILER", "the setting host_compiler"),
        ("CMAKE_SHARED_LINKER_FLAGS", "leaving it out (it holds the toolkit's"),
        ("GGML_BACKEND_DL", "leaving it out (a backend that can't be loaded is a silent CPU"),
        ("CMAKE_BUILD_TYPE", "leaving it out (the build backend takes none"),
        ("GGML_CCACHE", "the setting compiler_cache"),
        ("CMAKE_CXX_COMPILER_LAUNCHER", "the setting compiler_cache"),
        ("CMAKE_CUDA_LINKER_LAUNCHER", "the setting compiler_cache"),
        ("RULE_LAUNCH_COMPILE", "the setting compiler_cache"),
        ("CMAKE_INSTALL_RPATH", PLACES),
        ("CMAKE_INSTALL_PREFIX", PLACES),
        ("CMAKE_INSTALL_LIBDIR", PLACES),
        ("CMAKE_SKIP_BUILD_RPATH", PLACES),
        ("CMAKE_LIBRARY_OUTPUT_DIRECTORY", PLACES),
        ("BUILD_SHARED_LIBS", PLACES),
        ("CMAKE_PREFIX_PATH", TOOLS),
        ("CMAKE_FIND_ROOT_PATH_MODE_LIBRARY", TOOLS),
        ("CMAKE_TOOLCHAIN_FILE", TOOLS),
        ("GIT_EXECUTABLE", "leaving it out (the commit"),
        ("HF_TOKEN", NO_SECRET),
        ("my_password_file", NO_SECRET),
    ],
)
def test_options_that_are_refused(option: str, reason: str) -> None:
    (line,) = lines_of(cmake_options={option: "ON", "LLAVA_BUILD": "ON"})
    assert line.startswith(
        f"host gpu-a: cmake_options.{option}: found that name, allowed: {reason}"
    )


READ_ALIKE = "text without quotes, $, ` and "


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (" Native", "a named architecture"),
        ("-O3\n-g", "printable text on one line"),
        ("-O3\0", "printable text on one line"),
        ("\ud800", "printable text on one line"),
        ("$ORIGIN/../lib", READ_ALIKE),
        ("`id`", READ_ALIKE),
        ('-DX="1"', READ_ALIKE),
        ("-DX='1'", READ_ALIKE),
        ("a\\b", READ_ALIKE),
        ("https://me:hunter2@h/x", NO_SECRET),
        ("https://h/x?sig=hunter2", NO_SECRET),
        ("a" * 40_000, "at most 30000 in all"),
    ],
)
def test_values_of_options_that_are_refused(value: str, reason: str) -> None:
    (line,) = lines_of(cmake_options={"CMAKE_CXX_FLAGS": value, "LLAVA_BUILD": "ON"})
    assert f"allowed: {reason}" in line and "hunter2" not in line and len(line) < 300


def test_what_is_not_refused_can_be_rendered() -> None:
    value = "-O3 -DX=a;b,c#%{}()[]<>|&*?!~^ é"
    assert settings_of(cmake_options={"CMAKE_CXX_FLAGS": value})
    assert value in _quotable(shlex.join(["-DX=1", f"-DCMAKE_CXX_FLAGS={value}"]), "CMAKE_ARGS")


def test_option_names_and_values() -> None:
    bare = "found that name, allowed: the option's bare name such as LLAVA_BUILD, without -D"
    assert lines_of(cmake_options={"-DGGML_LTO": "ON"}) == [
        f"host gpu-a: cmake_options.-DGGML_LTO: {bare}"
    ]
    assert (
        lines_of(cmake_options={"-DHF=hunter2": "", "": "x"})
        == [f"host gpu-a: cmake_options.?: {bare}"] * 2
    )
    assert lines_of(cmake_options={"GGML_LTO": True}) == [
        f"host gpu-a: cmake_options.GGML_LTO: found True (bool), allowed: {NAMES}"
    ]


def test_unknown_keys_name_the_nearest_and_no_value() -> None:
    found, own = "found an unknown key", "or one of your own that begins with x_"
    assert lines_of(toolkit_verison="13.0", _sudoo=True, ssh_pasword="hunter2", colour="red") == [
        f"host gpu-a: toolkit_verison: {found}, "
        f"allowed: a known key (nearest: toolkit_version), {own}",
        f"host gpu-a: _sudoo: {found}, allowed: a known key (nearest: _sudo), {own}",
        f"host gpu-a: ssh_pasword: {found}, allowed: a known key (nearest: ssh_password), {own}",
        f"host gpu-a: colour: {found}, allowed: a known key, {own}",
    ]


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"GGML_NATIVE": "ON"}, "found that name, allowed: the setting cpu_baseline"),
        ({"ggml_avx512": "ON"}, "found that name, allowed: the setting cpu_baseline"),
        ({"GGML_CPU_ARM_ARCH": "armv9-a"}, "found that name, allowed: the setting cpu_baseline"),
        ({"CMAKE_CXX_FLAGS": "-O3 -march=znver4"}, "allowed: no -m options beside cpu_baseline"),
        ({"CMAKE_C_FLAGS_RELEASE": "-mavx512f"}, "allowed: no -m options beside cpu_baseline"),
    ],
)
def test_no_option_makes_shared_code_that_a_host_can_t_run(
    options: dict[str, str], allowed: str
) -> None:
    for setting in ({"build_sharing": "wheel"}, {"cpu_baseline": "x86-64-v3"}):
        (line,) = lines_of(cmake_options=options, **setting)
        assert allowed in line
    assert Settings.model_validate({"cmake_options": options})
    lines_of_none = validate_fleet({"a": {"cmake_options": options}})
    assert lines_of_none["a"].build_sharing == "host"


def test_options_that_choose_no_instruction_set_may_be_shared() -> None:
    flags = {"CMAKE_CXX_FLAGS": "-O3 -fno-math-errno", "CMAKE_CUDA_FLAGS": "-maxrregcount=64"}
    (found,) = validate_fleet({"a": {"cmake_options": flags, "build_sharing": "wheel"}}).values()
    assert found.cmake_options == flags


def test_contradictions() -> None:
    beside = 'allowed: no such key beside accelerator = "cpu"'
    assert lines_of(
        accelerator="cpu", compute_capabilities=["8.9"], toolkit_version="13.0", toolkit_root="/c"
    ) == [
        f"host gpu-a: compute_capabilities: found ('8.9',), {beside}",
        f"host gpu-a: toolkit_version: found '13.0', {beside}",
        f"host gpu-a: toolkit_root: found '/c', {beside}",
    ]
    assert lines_of(toolkit_root="/c", toolkit_method="wheels") == [
        "host gpu-a: toolkit_root: found '/c', "
        'allowed: toolkit_method = "present" beside it, not "wheels"'
    ]
    root = 'allowed: scope = "system" beside it (root)'
    assert lines_of(scope="user", reboot="allow", hold_driver=True) == [
        f"host gpu-a: reboot: found 'allow', {root}",
        f"host gpu-a: hold_driver: found True, {root}",
    ]
    assert lines_of(llama_version="0.3.35", llama_sha256=Settings().llama_sha256) == [
        f"host gpu-a: llama_sha256: found the sha256 of {LLAMA_VERSION}, "
        "allowed: the sha256 of llama_cpp_python-0.3.35.tar.gz"
    ]


def test_a_known_version_has_its_hash_and_a_newer_one_none_yet() -> None:
    for one in releases():
        assert settings_of(llama_version=one.version).llama_sha256 == one.sha256
        assert settings_of(llama_version=one.version, llama_sha256=ZEROS).llama_sha256 == ZEROS
    assert settings_of(llama_version="0.3.9999").llama_sha256 == ""
    assert settings_of(llama_version="0.3.36.post1").llama_sha256 == ""


@pytest.mark.parametrize("version", ["0.2.90", "0.3.26", "0.3.9", "0.1.0.post1"])
def test_a_version_older_than_the_last_ten_is_refused_by_name(version: str) -> None:
    known = ", ".join(one.version for one in releases())
    assert lines_of(llama_version=version, llama_sha256=ZEROS) == [
        f"host gpu-a: llama_version: found '{version}', allowed: one of {known}, or a newer release"
    ]


def test_an_option_that_a_version_lacks_is_refused_by_name() -> None:
    """As their CMake files have them: it came with 0.3.32, and another left with 0.3.36."""
    for version in ("0.3.32", "0.3.36"):
        settings_of(llama_version=version, cmake_options={"LLAMA_BUILD_MTMD": "ON"})
    assert lines_of(llama_version="0.3.31", cmake_options={"LLAMA_BUILD_MTMD": "ON"}) == [
        "host gpu-a: cmake_options.LLAMA_BUILD_MTMD: found no such option in llama-cpp-python "
        "0.3.31, allowed: one of its options (nearest: LLAMA_BUILD_HTML), or llama_version 0.3.36"
    ]
    (line,) = lines_of(cmake_options={"GGML_CUDA_PEER_MAX_BATCH_SIZE": "64"})
    assert line.endswith(", or llama_version 0.3.35")
    (line,) = lines_of(cmake_options={"GGML_CUDA_GRAPH": "ON"})
    assert line.endswith("allowed: one of its options (nearest: GGML_CUDA_GRAPHS)")


def test_options_that_no_table_knows_are_left_to_cmake() -> None:
    """Those of CMake, those that the tree reads undeclared, those of a version not known here."""
    settings_of(cmake_options={"CMAKE_CXX_STANDARD": "17", "GGML_BUILD_NUMBER": "7"})
    settings_of(llama_version="0.3.9999", cmake_options={"GGML_CUDA_SOON": "ON"})


def test_ten_errors_of_three_hosts_are_ten_lines() -> None:
    fleet: dict[str, dict[str, object]] = {
        "gpu-a": {
            "toolkit_version": "latest",
            "jobs": 0,
            "acelerator": "cuda",
            "cmake_options": {"LLAMA_CUBLAS": "ON"},
        },
        "gpu-b": {
            "compute_capabilities": ["8.9", "89"],
            "model": "llama.gguf",
            "llama_version": "0.2.90",
        },
        "gpu-sound": {"jobs": 4},
        "@local": {"scope": "root", "python": 3, "wheelhouse": "/no/such/folder"},
    }
    with pytest.raises(SettingsError) as refused:
        validate_fleet(fleet)
    lines = refused.value.lines
    assert len(lines) == 10
    assert [line.split(": ")[:2] for line in lines] == [
        ["host gpu-a", "acelerator"],
        ["host gpu-a", "toolkit_version"],
        ["host gpu-a", "jobs"],
        ["host gpu-a", "cmake_options.LLAMA_CUBLAS"],
        ["host gpu-b", "compute_capabilities[1]"],
        ["host gpu-b", "llama_version"],
        ["host gpu-b", "model"],
        ["host @local", "scope"],
        ["host @local", "python"],
        ["host @local", "wheelhouse"],
    ]
    assert all(": found " in line and ", allowed: " in line for line in lines)
    assert all("\n" not in line for line in lines)


def make_wheelhouse(
    folder: Path, source_sha256: str = Settings().llama_sha256, **changes: Any
) -> Path:
    """The smallest folder that is one: two files and their manifest, with those changes."""
    folder.mkdir()
    for name in ("a.whl", "b.whl"):
        (folder / name).write_text(name)
    entries = {
        path.name: {"sha256": house.sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
    }
    manifest = {
        "version": 1,
        "created": 0,
        "files": entries,
        "pythons": ["3.12"],
        "arches": ["x86_64"],
        "toolkits": [],
        "slim": True,
        "llama": {"version": LLAMA_VERSION, "sha256": ZEROS, "source_sha256": source_sha256},
    }
    (folder / house.MANIFEST).write_text(json.dumps(manifest | changes))
    return folder


def test_a_sound_wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_wheelhouse(tmp_path / "w")
    assert settings_of(wheelhouse=str(folder)).wheelhouse == str(folder)
    monkeypatch.chdir(tmp_path)
    assert settings_of(wheelhouse="w").wheelhouse == str(folder)


def test_what_the_settings_name_is_read_once_for_all_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    def counted(folder: Path) -> house.Wheelhouse:
        reads.append(folder)
        return read(folder)

    read = house.read
    monkeypatch.setattr(house, "read", counted)
    key = tmp_path / "mirror.asc"
    key.write_bytes(PUBLIC_KEY)
    first, second = make_wheelhouse(tmp_path / "w1"), make_wheelhouse(tmp_path / "w2")
    fleet = {
        "a": Settings(wheelhouse=str(first)),
        "b": Settings(wheelhouse=str(first)),
        "c": Settings(wheelhouse=str(second), toolkit_key=str(key), toolkit_url="http://m.lab"),
        "d": Settings(),
    }
    found = read_supplies(fleet)
    assert sorted(reads) == [first, second]
    assert found["a"] == found["b"] == Supplies(wheelhouse=read(first))
    assert found["c"] == Supplies(read(second), PUBLIC_KEY.decode())
    assert found["d"] == NO_SUPPLIES


def test_faults_of_a_wheelhouse_are_a_line_each(tmp_path: Path) -> None:
    folder = make_wheelhouse(tmp_path / "w")
    (folder / "a.whl").unlink()
    (folder / "b.whl").write_text("other")
    first, second = lines_of(wheelhouse=str(folder))
    rest = f", allowed: a complete wheelhouse; next: llamafleet wheelhouse build {folder}"
    assert first == f"host gpu-a: wheelhouse: found a.whl is missing{rest}"
    assert second.startswith("host gpu-a: wheelhouse: found b.whl is altered: its sha256 is ")
    assert second.endswith(rest)


def test_a_wheelhouse_of_another_archive_or_beside_an_index(tmp_path: Path) -> None:
    other = make_wheelhouse(tmp_path / "other", source_sha256=ZEROS)
    (line,) = lines_of(wheelhouse=str(other))
    assert f"found llama-cpp-python {LLAMA_VERSION} of source sha256 {ZEROS}, allowed: " in line
    (line,) = lines_of(wheelhouse=str(other), llama_version="0.3.30")
    assert line.endswith(f"; next: llamafleet wheelhouse build {other} --llama-version 0.3.30")
    folder = make_wheelhouse(tmp_path / "w")
    assert lines_of(wheelhouse=str(folder), index_url="https://pypi.example/simple") == [
        "host gpu-a: index_url: found 'https://pypi.example/simple', "
        "allowed: no index_url beside wheelhouse"
    ]


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "key.html"
    page.write_text("<html>404</html>")
    binary = tmp_path / "mirror.gpg"
    binary.write_bytes(BINARY_KEY)
    for file, found in (
        (page, "not an OpenPGP file"),
        (tmp_path / "none", "No such file"),
        (binary, "not armored"),
    ):
        (line,) = lines_of(toolkit_url="http://mirror.lab", toolkit_key=str(file))
        assert line.startswith(f"host gpu-a: toolkit_key: found {file} (") and found in line


def test_a_key_needs_the_mirror_that_signs_with_it(tmp_path: Path) -> None:
    key = tmp_path / "mirror.asc"
    key.write_bytes(PUBLIC_KEY)
    (line,) = lines_of(toolkit_key=str(key))
    assert line.endswith("allowed: toolkit_url beside it, the mirror's URL")


@pytest.mark.parametrize("url", ["mirror.lab", "ftp://mirror.lab", "http://a b", "http://x/$HOME"])
def test_a_mirror_is_an_http_url(url: str) -> None:
    (line,) = lines_of(toolkit_url=url)
    assert "allowed: an http:// or https:// URL" in line and url not in line


URLS = ("toolkit_url", "index_url", "proxy")


@pytest.mark.parametrize("key", URLS)
@pytest.mark.parametrize(
    "url",
    ["https://me:hunter2@h/simple", "https://hunter2@h", "https://me:hun%74er2@h", "https:///hunter2",
     "https://me:hun@ter2@h/", "https://h/?token=hunter2", "https://h/#hunter2", "https://h;hunter2",
     "https://h:hunter2/", "https://h:99999/", "https://[h/", "https://me:hunter2@[::1]/x",
     "https://hunter2@", "ftp://me:hunter2@h", "me:hunter2@h", "https://me:hunter2 @h"],
)  # fmt: skip
def test_a_password_in_a_url_is_refused_unseen(key: str, url: str) -> None:
    (line,) = lines_of(**{key: url})
    assert line.startswith(f"host gpu-a: {key}: found {hidden(len(url))}, allowed: an http")
    assert "hunter2" not in line and "hun" not in line


@pytest.mark.parametrize("key", URLS)
@pytest.mark.parametrize(
    "url",
    ["https://h", "http://127.0.0.1:3128", "https://[::1]:8443/a", "https://h/~me/a@b/simple/",
     "https://h/a,b=c:d+e"],
)  # fmt: skip
def test_a_url_that_may_be_shown(key: str, url: str) -> None:
    assert getattr(settings_of(**{key: url}), key) == url


ON_HOST = ("toolkit_root", "host_compiler", "python")
PATHS = (*ON_HOST, "toolkit_key", "model", "wheelhouse", "netrc")


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize(
    "value",
    ["~nosuchuser", "~nosuchuser/x", "/a\0b", "/a\nb", "/\ud800", "/\x1b[2J", "/" + "a/" * 3000, "",
     " ", "/" + "a" * 300],
)  # fmt: skip
def test_what_is_no_path_is_one_line(key: str, value: str) -> None:
    if key in ON_HOST and value.endswith("a" * 300):
        pytest.skip("a path on the host: only the host knows")
    (line,) = lines_of(**{key: value}, toolkit_url="https://h")
    assert line.startswith(f"host gpu-a: {key}: found ") and line.isprintable()
    assert len(line) < 800


@pytest.mark.parametrize(
    ("text", "mode", "found"),
    [
        ("machine h login l password hunter2", 0o644, "mode 0644; next: chmod 600"),
        ("machine h login l password hunter2", 0o640, "mode 0640"),
        ("machine h login l hunter2 p", 0o600, "line 1 is not understood"),
        ("machine h\nlogin l", 0o600, ""),
        ("hunter2", 0o600, "line 1 is not understood"),
        ("", 0o600, "no machine in it"),
        ("default login l password hunter2", 0o600, "an entry default"),
        ("machine h/x login l password hunter2", 0o600, "a machine that is no host name"),
        ('machine h login l password "hunter2 x"', 0o600, "machine h without a login"),
        ("machine h login l password hunter2\\\\x", 0o600, "machine h without a login"),
        ("machine h login l password hünter2", 0o600, "machine h without a login"),
        ("machine h login l password p\n" * 50_000, 0o600, "more than 1048576 bytes"),
    ],
)
def test_a_netrc_that_is_refused(tmp_path: Path, text: str, mode: int, found: str) -> None:
    file = make_netrc(tmp_path, text, mode)
    (line,) = lines_of(netrc=str(file))
    assert line.startswith(f"host gpu-a: netrc: found {file} ({found}")
    assert line.endswith("allowed: a file as of netrc(5) that only you can read")
    assert "hunter2" not in line


def test_a_netrc_that_is_no_file_of_ours(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, found in (
        ("none", "No such file or directory"),
        ("pipe", "no regular file"),
        ("", "Is a directory"),
        ("/dev/zero", "no regular file"),
    ):
        (line,) = lines_of(netrc=str(tmp_path / name))
        assert f"({found})" in line
    if os.geteuid() == 0:
        file = make_netrc(tmp_path)
        os.chown(file, 65534, 65534)
        (line,) = lines_of(netrc=str(file))
        assert "(it belongs to user 65534, not to 0)" in line


def test_a_netrc_is_read_as_one_line_for_each_machine(tmp_path: Path) -> None:
    text = "# mine\nmachine a.lab\n login me\n password s3#cr~t!\n"
    text += "machine b login l account x password p"
    settings = settings_of(netrc=str(make_netrc(tmp_path, text, 0o400)))
    (supplies,) = read_supplies({"gpu-a": settings}).values()
    assert supplies.netrc == (
        "machine a.lab login me password s3#cr~t!\nmachine b login l password p\n"
    )
    assert "s3" not in repr(supplies)


class _Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")


TEXTS = st.one_of(
    st.text(),
    st.text("$'\"\\\0\n\x1b\ud800/~@:.*", max_size=20),
    st.sampled_from(
        ["~x", "/dev/zero", "/proc/self/mem", "/" + "x" * 5000, "https://a:b@c", "8.9"]
    ),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.binary(), TEXTS, st.builds(_Odd),
    st.just("9" * 5000).map(lambda digits: 10 ** len(digits)),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner), st.dictionaries(st.one_of(TEXTS, st.integers()), inner)
    ),
    max_leaves=6,
)
DATA = st.one_of(
    st.dictionaries(st.sampled_from(sorted(Settings.model_fields)), VALUES, max_size=6),
    st.dictionaries(st.one_of(TEXTS, st.integers(), st.none()), VALUES, max_size=4),
    st.fixed_dictionaries({"cmake_options": st.dictionaries(TEXTS, TEXTS)}),
)


@hypothesis.settings(max_examples=600, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=40), DATA, max_size=2))
def test_whatever_an_inventory_says_is_settings_or_printable_lines(fleet: Any) -> None:
    try:
        made = validate_fleet(fleet)
    except SettingsError as error:
        assert error.lines and all(line.isprintable() for line in error.lines)
        assert all(len(line) < 2000 for line in error.lines)
    else:
        assert set(made) == set(fleet)


def test_data_that_holds_itself_is_one_line() -> None:
    ring: list[object] = []
    ring.append(ring)
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    for value in (ring, deep):
        assert len(lines_of(compute_capabilities=value)) == 1
    (line,) = lines_of(jobs=10**5000)
    assert line.endswith(": found a int, allowed: a whole number of jobs from 1 to 1024")


def test_a_key_that_is_no_text_is_one_line() -> None:
    with pytest.raises(SettingsError) as refused:
        validate_fleet({"a": {3: "x"}})  # type: ignore[dict-item]
    assert len(refused.value.lines) == 1
