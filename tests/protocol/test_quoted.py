"""What a program shows and does not say, and what shows that a log ended well all the same."""

from __future__ import annotations

import pytest

from llamafleet.protocol.diagnose import causes, fails, signatures_from
from llamafleet.protocol.log_text import LogText
from llamafleet.tables import failures

SIGNATURES = signatures_from(failures.rows())

IPYTHON = """\
---------------------------------------------------------------------------
OSError                                   Traceback (most recent call last)
<ipython-input-10-d8dbd79685e4> in <cell line: 4>()
      2 name = "a/b"
----> 4 model = AutoModel.from_pretrained(name)

/usr/lib/python3.10/site-packages/hub.py in get(url)
    581     try:
    582     except asyncio.CancelledError:
--> 583         raise EnvironmentError("502 Bad Gateway")

"""
PYTHON = """\
Traceback (most recent call last):
  File "/srv/app.py", line 3, in <module>
    raise RuntimeError("CUDA error: invalid device function")
  File "<string>", line 1, in <module>
"""
PERF = "llama_perf_context_print: load time = 1 ms"
CHAT = """\
main: chat template is available
<|channel|>analysis<|message|>The user sees an error.
> /bin/sh: /dev/fd/0: Permission denied
OSError: [Errno 28] No space left on device is what you will get.
"""


def found(text: str) -> list[str]:
    return [match.id for match in causes(SIGNATURES, text)]


@pytest.mark.parametrize("traceback", [IPYTHON, PYTHON])
def test_the_source_in_a_traceback_is_not_said(traceback: str) -> None:
    text = f"{traceback}KeyError: 'choices'\n"
    assert (found(text), fails(text)) == ([], True)


@pytest.mark.parametrize(
    "said",
    [
        "ModuleNotFoundError: No module named 'numpy'",
        "  ModuleNotFoundError: No module named 'numpy'",  # as pip shows another program's
    ],
)
@pytest.mark.parametrize("traceback", [IPYTHON, PYTHON])
def test_its_last_line_is(traceback: str, said: str) -> None:
    assert found(f"{traceback}{said}\n") == ["python-module-missing"]


def test_all_that_an_assertion_says_is_its_source() -> None:
    source = '  File "/x/llama.py", line 1, in f\n    assert self.model is not None\n'
    text = f"Traceback (most recent call last):\n{source}AssertionError\n"
    assert found(text) == ["model-load-generic"]


def test_numbered_lines_behind_a_traceback_are_said() -> None:
    text = f"{PYTHON}KeyError: 1\n12 CUDA error: invalid device function\n"
    assert found(text) == ["no-kernel-image"]


@pytest.mark.parametrize(
    "advice",
    [
        "If you get `CUDA error: invalid device function` errors, build for your card",
        "**If you see** 'No space left on device' you must",
        "Note that when it fails with [Errno 28], nothing is",
    ],
)
def test_advice_is_no_failure(advice: str) -> None:
    assert (found(f"{advice}\n"), fails(f"{advice}\n")) == ([], False)


@pytest.mark.parametrize("told", ["[ Prompt: 31.1 t/s | Generation: 9.8 t/s ]", PERF])
def test_a_chat_is_not_the_programs_own_words(told: str) -> None:
    text = f"{CHAT}{told}\n"
    assert (found(text), fails(text)) == ([], False)


@pytest.mark.parametrize(
    "end",
    [
        "./run.sh: line 3: 12345 Segmentation fault      (core dumped) llama-cli",
        "E: Unable to locate package cuda-toolkit",
        'Traceback (most recent call last):\n  File "a.py", line 3, in <module>\nKeyError: 1',
    ],
)
@pytest.mark.parametrize("before", ["", "[ Prompt: 31.1 t/s | Generation: 9.8 t/s ]\n> more\n"])
def test_a_chat_that_broke_off_is_not_called_well(before: str, end: str) -> None:
    assert fails(f"<|start|>assistant<|message|>Hello.\n{before}{end}\n")


def test_of_a_chat_without_an_end_only_the_last_lines_are_in_doubt() -> None:
    chat = f"{CHAT}> /bin/sh: /dev/fd/0: Permission denied\n" + "It is.\n" * 30
    assert (found(chat), fails(chat)) == ([], False)
    ended = f"{CHAT}use std::error::Error;\nfn main() {{}} [end of text]\n"
    assert (found(ended), fails(ended)) == ([], False)


@pytest.mark.parametrize(
    "item",
    [
        "3. `fetchWithRetry`: it handles rate limiting (HTTP status 429) by waiting",
        "- **Disk**: no space left on device means that it is full",
    ],
)
def test_what_a_model_explains_is_no_failure(item: str) -> None:
    assert (found(f"{item}\n"), fails(f"{item}\n")) == ([], False)


def test_a_servers_refusal_is_its_clients_concern() -> None:
    log = 'INFO:     192.0.2.1:58726 - "PRI %2A HTTP/2.0" 404 Not Found\n'
    assert (found(log), fails(log)) == ([], False)


CHECKS = """\
Determining if the pthread_create exist failed with the following output:
Change Dir: /b/CMakeFiles/CMakeTmp
CheckSymbolExists.c:(.text+0x16): undefined reference to `pthread_create'
collect2: error: ld returned 1 exit status
make[1]: *** [CMakeFiles/cmTC_1.dir/build.make:87: cmTC_1] Error 1
make: *** [Makefile:121: cmTC_1/fast] Error 2
"""


def test_what_cmake_asks_a_compiler_need_not_compile() -> None:
    asked = f"{CHECKS}\n\nFile /b/CMakeFiles/CMakeTmp/CheckSymbolExists.c:\n#include <pthread.h>\n"
    assert (found(asked), fails(asked)) == ([], False)
    works = CHECKS.replace("the pthread_create exist", "the CUDA compiler works")
    assert found(works) == ["link-undefined"]
    assert found(
        f"{CHECKS}CMake Error: x\nnvcc fatal : Host compiler targets unsupported OS.\n"
    ) == ["host-compiler-refused"]


@pytest.mark.parametrize(
    ("said", "id"),
    [
        ("CUDA error: an illegal memory access was encountered", "illegal-memory-access"),
        ("llama_decode: failed to find a memory slot for batch of size 1", "context-too-small"),
    ],
)
def test_what_llama_cpp_says_amid_a_chat_is(said: str, id: str) -> None:
    assert found(f"{CHAT}{said}\n{PERF}\n") == [id]


def test_behind_a_chat_the_log_goes_on() -> None:
    text = f"{CHAT}{PERF}\nbash: make: command not found\n"
    assert found(text) == ["no-generator"]


@pytest.mark.parametrize("stop", ["KeyboardInterrupt", "^C"])
def test_a_program_that_its_user_stopped_had_done_its_work(stop: str) -> None:
    served = "Output generated in 4.00 seconds\nERROR: Exception in ASGI application\n"
    assert not fails(f"{served}{stop}\n")
    assert fails(served)
    assert fails(f"ERROR: Exception in ASGI application\n{stop}\n")  # it had done none


def test_make_that_leaves_its_folder_unbroken_went_well() -> None:
    text = "error: unknown option `cached'\ncc -c a.c\nmake: Leaving directory '/x'\n"
    assert not fails(text)
    assert fails("make[1]: *** [Makefile:3: all] Error 1\nmake: Leaving directory '/x'\n")


def test_a_file_in_base64_says_nothing() -> None:
    line = "Xe5/9fKilled0" * 6
    assert LogText.of(f"{line}\n{line[:-6]}==\n").lines == ()
    assert LogText.of(f"at {line}\n").lines


def test_a_gpu_of_another_kind_is_a_gpu() -> None:
    info = "system_info: n_threads = 6 | CPU : SSE3 = 1 | AVX = 1 |\n"
    asked = "llama-server -ngl 99\n"
    assert found(f"{asked}load_tensors: offloaded 35/37 layers to GPU\n{info}") == []
    assert found(f"{asked}{info}") == ["cpu-only-build"]


def test_the_cpu_of_a_host_without_a_gpu_is_a_hint() -> None:
    said = 'level=INFO msg="inference compute" id=cpu library=cpu compute=""\n'
    assert [match.rank for match in causes(SIGNATURES, said)] == ["hint"]
    assert found(f"NVRM: loading NVIDIA UNIX x86_64 Kernel Module\n{said}")[0] == "gpu-ignored"


def test_a_download_that_was_not_needed() -> None:
    asked = "common_download_file_single_online: HEAD failed, status: 404\n"
    assert found(f"{asked}no remote preset found, skipping\n") == []
    assert found(asked) == ["model-download"]


def test_what_the_linker_warned_of_is_the_cause_where_that_ended_it() -> None:
    warned = "/opt/conda/compiler_compat/ld: warning: libgomp.so.1, needed by x.so, not found\n"
    assert [match.rank for match in causes(SIGNATURES, warned)] == ["hint"]
    ended = f"{warned}collect2: error: ld returned 1 exit status\n"
    assert [(each.id, each.rank) for each in causes(SIGNATURES, ended)] == [
        ("conda-ld", "cause"),
        ("link-undefined", "consequence"),
    ]


@pytest.mark.parametrize(
    "prefix",
    [
        "(EngineCore_0 pid=1208) ERROR 08-01 10:11:12 [core.py:1231] ",
        "(RayWorkerWrapper pid=1208, ip=192.0.2.1) ",
    ],
)
def test_the_prefix_of_a_worker_hides_nothing(prefix: str) -> None:
    assert found(f"{prefix}No devices were found\n") == ["no-devices"]


@pytest.mark.parametrize(
    "said",
    [
        'INFO: 192.0.2.1:49706 - "GET /health HTTP/1.1" 503 Service Unavailable',
        'Compiling the CUDA compiler identification source file "a.cu" succeeded.',
        "[@local] note: NO NVIDIA GPU FOUND: built for the CPU alone",
    ],
)
def test_words_of_what_went_well(said: str) -> None:
    assert (found(f"{said}\nready\n"), fails(f"{said}\nready\n")) == ([], False)


@pytest.mark.parametrize(
    ("said", "id"),
    [
        ("fatal: unable to access 'https://h.example/': returned error: 503", "server-error"),
        (
            'Compiling the CUDA compiler identification source file "a.cu" failed.',
            "cuda-compiler-id-failed",
        ),
        ("NO NVIDIA GPU FOUND", "no-devices"),
        ("Illegal instruction (core dumped)", "illegal-instruction"),
    ],
)
def test_the_same_words_of_what_did_not(said: str, id: str) -> None:
    assert found(f"{said}\n") == [id]


def test_a_word_in_another_form_is_another_word() -> None:
    assert found("- Illegal activities: no illegal instructions here.\n") == []
