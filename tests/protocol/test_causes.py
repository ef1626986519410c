"""Logs of public reports, and how causes are told from what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict, cast

import pytest
import yaml

from llamafleet.protocol.diagnose import causes, diagnose, error_lines, fails, signatures_from
from llamafleet.tables import failures

DATA = Path(__file__).parent / "data" / "reports"
FAMILIES = DATA.parent / "families.yaml"
MESSAGES = DATA.parent / "messages.yaml"
NOT_KNOWN = "unknown"
BUILD = Path(__file__).parents[1] / "onhost" / "data" / "build-cpu.log"
SIGNATURES = signatures_from(failures.rows())
SAMPLE = {row["id"]: row["sample"] for row in failures.rows()}


class _Report(TypedDict):
    source: str
    """repository#number; of a vendor's page its name; of our own run what it was."""
    cause: str
    """Id of the entry; "": nothing is wrong, or nothing says what."""
    log: str


class Report(_Report, total=False):
    well: bool
    """Nothing failed."""


def reports() -> list[Report]:
    files = sorted(DATA.glob("*.yaml"))
    return [
        cast("Report", row)
        for file in files
        for row in yaml.safe_load(file.read_text(encoding="utf-8"))
    ]


def ids(text: str) -> list[str]:
    return [match.id for match in causes(SIGNATURES, text)]


def first(text: str) -> str:
    """Of what is wrong: a hint is none."""
    match = diagnose(SIGNATURES, text)
    return match.id if match else ""


@pytest.mark.parametrize("report", reports(), ids=lambda report: report["source"])
def test_a_report_has_its_cause(report: Report) -> None:
    assert first(report["log"]) == report["cause"]


@pytest.mark.parametrize(
    "report",
    [report for report in reports() if report.get("well")],
    ids=lambda report: report["source"],
)
def test_what_went_well_is_no_failure(report: Report) -> None:
    rows = causes(SIGNATURES, report["log"])
    assert not fails(report["log"]) and {match.rank for match in rows} <= {"hint"}


def messages() -> dict[str, list[str]]:
    return cast("dict[str, list[str]]", yaml.safe_load(MESSAGES.read_text(encoding="utf-8")))


@pytest.mark.parametrize("id", messages())
def test_how_the_tools_word_it(id: str) -> None:
    said = {line: first(line) for line in messages()[id]}
    if id == NOT_KNOWN:
        assert [line for line, found in said.items() if found or not fails(line)] == []
        assert [line for line in said if line.splitlines()[-1] not in error_lines(line)] == []
    else:
        assert {line: found for line, found in said.items() if found != id} == {}


def families() -> list[tuple[str, str]]:
    said = yaml.safe_load(FAMILIES.read_text(encoding="utf-8"))
    return [(id, line) for id, lines in said.items() for line in lines]


@pytest.mark.parametrize(("id", "line"), families())
def test_a_message_has_its_cause(id: str, line: str) -> None:
    assert first(line) == id


@pytest.mark.parametrize(
    ("id", "said"),
    [
        (
            "oom-weights",
            "slot launch_slot_: id  0 | task 0 | processing task\nCUDA error: out of memory\n"
            "  current device: 1, in function alloc at ggml/src/ggml-cuda/ggml-cuda.cu:452\n",
        ),
        (
            "layers-on-cpu",
            "llama-1  | load_tensors: layer   0 assigned to device CPU\n"
            "llama-1  | load_tensors:   CPU_Mapped model buffer size =  4685.30 MiB\n",
        ),
        (
            "option-of-other-release",
            "CMake Error at CMakeLists.txt:150 (set_target_properties):\n  set_target_properties "
            "Can not find target to add properties to:\n  llava_shared\n"
            "-- Configuring incomplete, errors occurred!\n",
        ),
        (
            "conda-ld",
            "/opt/conda/envs/e/compiler_compat/ld: ggml/src/libggml.so: undefined reference to "
            "`cudaStreamDestroy@libcudart.so.12'\ncollect2: error: ld returned 1 exit status\n",
        ),
    ],
)
def test_a_cause_amid_a_real_log(id: str, said: str) -> None:
    lines = BUILD.read_text(encoding="utf-8").splitlines(keepends=True)
    for at in (0, 40, len(lines) // 2, len(lines)):
        assert first("".join([*lines[:at], said, *lines[at:]])) == id


@pytest.mark.parametrize(
    "prefix",
    [
        "llama-1  | ",
        "2026-11-26T08:00:01.123456Z ",
        "2026-11-26 08:00:01,123 INFO ",
        "Nov 26 08:00:01 gpu-a llama-server[4242]: ",
        "0.00.060.123 I ",
        "      ",
        "[12/144] ",
        "#14 33.21 ",
        "\x1b[31m",
    ],
)
def test_the_prefix_of_a_line_hides_nothing(prefix: str) -> None:
    # This pattern begins at a line's.
    assert first(f"{prefix}No devices were found\n") == "no-devices"


def test_what_cmake_wrapped_is_read_and_counted_from_its_first_line() -> None:
    (match,) = causes(
        SIGNATURES,
        "-- ok\n\n  exception\n  specification is incompatible with that of previous\n"
        '  function "cospi"\n',
    )
    assert (match.id, match.number) == ("glibc-241-math", 3)
    assert match.line.startswith("exception specification is incompatible")


def test_any_case() -> None:
    assert first(SAMPLE["enospc"].upper()) == first(SAMPLE["enospc"].lower()) == "enospc"


def test_all_causes_are_told_the_root_first_with_their_lines() -> None:
    text = "\n".join(
        [
            "ERROR: Failed building wheel for llama-cpp-python",
            "warning: failed to mlock 73728000-byte buffer (after previously locking 0 bytes)",
            "fatal error: x.o: No space left on device",
            "Python.h: No such file or directory",
        ]
    )
    found = causes(SIGNATURES, text)
    assert [(match.id, match.number, match.rank) for match in found] == [
        ("enospc", 3, "cause"),
        ("python-h", 4, "cause"),
        ("wheel-build-failed", 1, "consequence"),
        ("mlock", 2, "hint"),
    ]


def test_what_explains_another_cause_stands_before_it() -> None:
    text = "\n".join([SAMPLE["nvidia-smi-no-driver"], SAMPLE["driver-module-build"]])
    assert ids(text)[:2] == ["driver-module-build", "nvidia-smi-no-driver"]


OOM = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9216.00 MiB on device 0: cudaMalloc failed: out of memory"  # noqa: E501


@pytest.mark.parametrize(
    ("said", "id"),
    [
        # An attempt that was made again and ended well.
        (
            "Collecting llama-cpp-python\nERROR: Could not install packages due to an OSError: "
            "Read timed out.\nCollecting llama-cpp-python\nSuccessfully installed x-1\n",
            "",
        ),
        # One that failed and was never made again.
        (
            "Successfully installed pip-26\nERROR: Could not install packages due to an OSError: "
            "[Errno 28] No space left on device\n",
            "enospc",
        ),
        (f"{OOM}\nllama_server: server is listening on http://127.0.0.1:8080\n", ""),
        (f"server is listening on http://127.0.0.1:8080\n{OOM}\n", "oom-weights"),
    ],
)
def test_what_was_mended_is_no_cause(said: str, id: str) -> None:
    assert first(said) == id


def test_a_program_that_goes_on_without_its_gpu_mended_nothing() -> None:
    said = f"{SAMPLE['no-cuda-device']}\nmain: server is listening on http://127.0.0.1:8080\n"
    assert first(said) == "no-cuda-device"
    assert first(f"{said}ggml_cuda_init: found 1 CUDA devices\n") == ""


HARMLESS = """\
fatal: detected dubious ownership in repository at '/src/vendor/llama.cpp'
CMake Warning: LLAMA_CUDA is deprecated and will be removed, use GGML_CUDA instead
warning: variable 'x' set but not used [-Wunused-but-set-variable]
WARNING: Retrying (Retry(total=4, connect=None, read=None)) after connection broken
"""


def test_warnings_are_no_cause_beside_one_and_no_alarm_alone() -> None:
    assert first(HARMLESS) == ""
    assert first(f"{HARMLESS}{SAMPLE['enospc']}\n{HARMLESS}") == "enospc"


def test_a_log_that_ended_well_is_no_failure() -> None:
    log = BUILD.read_text(encoding="utf-8")
    assert causes(SIGNATURES, log) == () and not fails(log)
    assert fails(f"{log}x.c:3:1: error: unknown type name 'y'\n")


@pytest.mark.parametrize(
    "own",
    [
        "x.cu(3): error: no such type",
        "ptxas fatal   : Unresolved extern function 'f'",
        "  ValueError: found no such thing",
        "/usr/bin/ld: a.o: undefined reference to `f'",
    ],
)
def test_the_tools_own_line_stands_before_what_reports_it(own: str) -> None:
    noise = [f"line {n}" for n in range(60)]
    log = "\n".join(["CMake Error at CMakeLists.txt:1", *noise, own, "ERROR: no wheel", *noise])
    assert error_lines(log)[2] == own
    assert fails(log)


def test_own_lines_further_down_are_kept() -> None:
    noise = [f"line {n}" for n in range(60)]
    log = "\n".join(["a.c:1: error: x", *noise, "b.c:1: error: y", "b.c:1: error: y", *noise])
    assert error_lines(log)[-1] == "b.c:1: error: y"
    assert len(error_lines(log)) == 20


def test_a_long_log_is_read_at_both_ends_with_its_own_line_numbers() -> None:
    middle = "compiling something that takes a while\n" * 200_000
    found = causes(SIGNATURES, f"{SAMPLE['enospc']}\n{middle}{SAMPLE['python-h']}\n")
    assert {match.id: match.number for match in found} == {"enospc": 1, "python-h": 200_002}


UNKNOWN = "x.cpp:3:1: error: something odd"
WRONG = SAMPLE["arch-89-needs-11-8"]
LONG = "[7/900] Building CUDA object src/x.cu.o\n" * 150_000


def test_what_stands_in_the_middle_of_a_long_log_is_read() -> None:
    (match,) = causes(SIGNATURES, f"{LONG}{WRONG}\n{LONG}")
    assert (match.id, match.number) == ("arch-89-needs-11-8", 150_001)
    assert fails(f"{LONG}{UNKNOWN}\n{LONG}")
    assert UNKNOWN in error_lines(f"{LONG}{UNKNOWN}\n{LONG}")
    assert not fails(LONG)


def test_what_stands_far_behind_in_its_line_is_read() -> None:
    bar = "\r".join(f"Downloading {n} %  ######" for n in range(100))
    assert first(f"{bar}\r{WRONG}\n") == "arch-89-needs-11-8"
    assert first(f"{'x ' * 9000}{WRONG}\n") == "arch-89-needs-11-8"
    assert fails(f"{bar}\r{UNKNOWN}\r\n")


def test_line_ends_of_windows_make_no_empty_lines() -> None:
    assert error_lines("a\r\n\r\nb\r\n") == ["a", "", "b"]


PIP = "$ pip install "
WHEEL = "Building wheel for {} (pyproject.toml): started"


@pytest.mark.parametrize(
    ("failed", "after"),
    [
        (f"{PIP}llama-cpp-python", f"{PIP}rich\nSuccessfully installed rich-13"),
        ("$ apt install nvcc", f"$ apt install cmake\n{PIP}rich\nSuccessfully installed rich-13"),
        (WHEEL.format("llama-cpp-python"), f"{WHEEL.format('x')}\nSuccessfully built x"),
        ("a", f"{PIP}rich\nSuccessfully installed rich-13"),
    ],
)
def test_what_ended_well_of_another_thing_mends_nothing(failed: str, after: str) -> None:
    assert first(f"{failed}\n{WRONG}\n{after}\n") == "arch-89-needs-11-8"
    assert fails(f"{failed}\n{UNKNOWN}\n{after}\n")


@pytest.mark.parametrize(
    "after",
    [
        "done",
        "Requirement already satisfied: rich in /usr/lib",
        "0 upgraded, 0 newly installed, 0 to remove and 3 not upgraded.",
        "Nothing to do.\nComplete!",
        "#9 naming to docker.io/x/y done",
        "# To activate this environment, use",
        "ca-certificates updated successfully",
    ],
)
@pytest.mark.parametrize("begun", ["", "$ sudo apt-get install gcc\n"])
def test_a_good_end_of_another_program_hides_no_compilers_error(begun: str, after: str) -> None:
    assert fails(f"{UNKNOWN}\n{begun}{after}\n")


def test_a_good_end_mends_its_own_program() -> None:
    apt, between = "E: x can't be read\n", "step\n" * 9
    assert not fails(f"{apt}0 upgraded, 0 newly installed, 0 to remove and 3 not upgraded.\n")
    assert fails(f"{apt}{between}Status: Downloaded newer image for x\n")


@pytest.mark.parametrize(
    "again",
    [
        f"{PIP}--no-cache-dir llama-cpp-python==0.3\nSuccessfully installed llama_cpp_python-0.3",
        f"{WHEEL.format('llama-cpp-python')}\nSuccessfully built llama-cpp-python",
        "Retrying with one job\nSuccessfully built llama-cpp-python",
    ],
)
def test_the_same_thing_made_again_mends_it(again: str) -> None:
    begun = f"{PIP}llama-cpp-python\n{WHEEL.format('llama-cpp-python')}\n"
    assert first(f"{begun}{WRONG}\n{again}\n") == ""
    assert not fails(f"{begun}{UNKNOWN}\n{again}\n")


def test_a_name_in_a_step_of_a_build_is_no_failure() -> None:
    steps = (
        "[1/9] Building CXX object tests/oom-kill.cc.o\n[ 50%] Linking CXX executable bad_alloc\n"
    )
    assert causes(SIGNATURES, steps) == () and not fails(steps)


def test_half_a_secret_is_not_shown() -> None:
    for blanks in range(330, 400, 3):
        said = f"{'y' * blanks} https://bob:hunter2hunter2hunter2@pypi.lab/x {WRONG} error: z"
        (match,) = causes(SIGNATURES, said)
        assert "hunter" not in match.line and "hunter" not in "".join(error_lines(said))


@pytest.mark.parametrize(
    "said",
    [
        'srv log_server_r: request: {"messages":[{"role":"user","content":"why %s?"}]}',
        'slot update_slots: id 0 | task 1 | prompt: "why %s?"',
    ],
)
def test_what_users_write_is_no_failure(said: str) -> None:
    log = "main: server is listening on http://127.0.0.1:8080\n"
    assert causes(SIGNATURES, f"{log}{said % WRONG}\n") == ()
    answer = 'srv log_server_r: response: {"error":{"code":500,"message":"%s"}}'
    assert first(f"{log}{answer % OOM}\n") == "oom-weights"
