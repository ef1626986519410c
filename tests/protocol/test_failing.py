"""That something failed is said of each log that ends so, and of none that ended well."""

from __future__ import annotations

import pytest

from llamafleet.protocol.diagnose import causes, error_lines, fails, signatures_from
from llamafleet.tables import failures

SIGNATURES = signatures_from(failures.rows())


def first(text: str) -> str:
    return next((match.id for match in causes(SIGNATURES, text)), "")


@pytest.mark.parametrize(
    "end",
    [
        "bash: line 3: frobnicate: command not found",
        "Compiler version check failed:",
        "ERROR",
        "AssertionError:",
        "subprocess.TimeoutExpired: Command 'nvcc' timed out after 60 seconds",
        "error MSB6003: The specified task executable could not be run.",
        "curl: (22) The requested URL returned error: 404",
        "The requested operation was refused by the server",
        "main.service: Main process exited, code=exited, status=3/NOTIMPLEMENTED",
        "make: *** [Makefile:221: modules] Chyba 2",
        "collect2: erreur: ld a retourné le statut de sortie 1",
        "Paketlisten konnten nicht gelesen werden: Vorgang fehlgeschlagen",
        "构建失败",
        "[FAILED] Failed to start frob.service",
        "panic: runtime error: index out of range",
        "failed to initialize the device because the driver is too old",
        "could not load the library that is needed by this program",
        'Traceback (most recent call last)\n  File "x.py", line 3\nUnsupportedOperation: fileno',
    ],
)
def test_a_log_that_ends_in_an_error_is_never_called_well(end: str) -> None:
    log = "\n".join([*(f"step {n}" for n in range(40)), end])
    found = causes(SIGNATURES, log)
    assert fails(log) or any(match.rank != "hint" for match in found)
    assert any(end.splitlines()[-1] in line for line in error_lines(log))


@pytest.mark.parametrize(
    "end",
    [
        "-- Looking for pthread_create in pthreads - not found",
        "0 errors, 0 warnings",
        "fatal: not a git repository (or any of the parent directories): .git",
        "nvidia: module verification failed: signature missing - tainting kernel",
        'audit: type=1400 audit(1695537849.459:95): apparmor="DENIED" operation="open" profile="x"',
        "traps: Chrome_IOThread[5231] trap int3 ip:55d0 sp:7f error:0 in chrome[55d0+1000]",
        "srv  log_server_r: done request: GET /favicon.ico 127.0.0.1 404",
        "Setting up libgpg-error0:amd64 (1.47-3build2) ...",
        "[12/40] /usr/bin/c++ -Werror -c error.cpp -o error.cpp.o",
        "Pipfile.lock not found, creating...",
        "langchain 0.1.0 requires numpy<2, but you have numpy 2.1.0 which is incompatible.",
        'level=INFO msg="no error"',
        "+ echo >&2 'ERROR: no configuration'",
        "Solution Validates: avg error less than 1.0e-13 on all three arrays",
        "DONE! Dropped 0 corrupted lines.",
        "It is up: windowed, true speed, crash auto-restart.",
        "(the share of prompts that were 'FAIL' and are now 'PASS')",
        "error: resource(s) were provided, but no name was specified",
    ],
)
def test_what_does_no_harm_is_no_failure(end: str) -> None:
    assert not fails(f"step 1\n{end}\n")
    assert first(f"step 1\n{end}\n") == ""


@pytest.mark.parametrize(
    "log",
    [
        # dnf goes on without a repository.
        "  - Status code: 404 for https://m.lab/repodata/repomd.xml (IP: 192.0.2.1)\n"
        "Error: Failed to download metadata for repo 'x': Cannot download repomd.xml\n"
        "Ignoring repositories: x\nNothing to do.\nComplete!\n",
        # pip, after an index that did not answer.
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'ReadTimeoutError(x)'\n"
        "Requirement already up-to-date: pip in /usr/lib\n",
        # A traceback within a warning, and one that Python ignores.
        "Exception ignored in: <function Llama.__del__>\nTraceback (most recent call last):\n"
        "  File \"llama.py\", line 9, in __del__\nTypeError: 'NoneType' object is not callable\n",
        # A file that need not be there.
        "common_download_file_single_online: HEAD failed, status: 404\n"
        "no remote preset found, skipping\nmain: server is listening on http://127.0.0.1:8080\n",
        # An installer that asks and goes on.
        "-> The CC version check failed:\nWARNING: Ignoring CC version mismatch:\n"
        "-> Installation of the NVIDIA Driver (version: 580) is now complete.\n",
        # Another tool in the place of the one that failed.
        "error: unexpected argument '--torch-backend' found\nuv failed, falling back to pip\n"
        "step 3\nstep 4\nstep 5\nstep 6\n",
        # A file that not all models have; another way than the newest; a program's own lock.
        "Failed to load generation config for a/b: a/b does not appear to have a file named "
        "generation_config.json. Checkout 'https://huggingface.co/a/b/tree/main'\nLoad weights.\n"
        "1\n2\n3\n",
        "WARNING 07-31 16:31:45 [arg.py:1690] Compute Capability < 8.0 is not supported by the "
        "V1 Engine. Falling back to V0.\n",
        "[WARNING] main: GPU lease unavailable (GPU already leased); falling back to CPU\n",
        # PyTorch's default on a machine without CUDA.
        "autocast_mode.py:266: UserWarning: User provided device_type of 'cuda', but CUDA is not "
        "available. Disabling\n",
        "MPS failed for Whisper, falling back to CPU\n1\n2\n3\n4\n",
        # A router that asks its workers until they are there, and a test that passed.
        "WARN gateway::event: Step failed error=Health check returned 503 Service Unavailable\n"
        "INFO gateway::event: Step retrying\n"
        "Ran 1 test in 3.1s\n\nOK\n",
        # NCCL's own tool, which not all machines let listen.
        "node1:529:535 [0] ras/support.cc:160 NCCL WARN Call to bind failed: Address already "
        "in use\nstep:1 - loss:0.3\n",
        # Names of files, and a model's own text.
        "[INFO]: Installed: /usr/local/cuda/include/thrust/system/detail/bad_alloc.h\n",
        "llama_model_loader: - kv 30: tokenizer.chat_template str = {{ raise_exception('no') }}\n",
        "    {{ raise_exception('Conversation roles must alternate user/assistant') }}\n",
    ],
)
def test_what_a_program_went_on_in_spite_of_is_no_failure(log: str) -> None:
    assert not fails(log)
    assert [match for match in causes(SIGNATURES, log) if match.rank != "hint"] == []


ANSWERS = [
    'INFO:     127.0.0.1:34574 - "POST /v1/chat/completions HTTP/1.1" 200 OK',
    "srv  log_server_r: done request: POST /v1/chat/completions 127.0.0.1 200",
    '[GIN] 2026/04/28 - 10:41:32 | 200 |  1m23s |  127.0.0.1 | POST  "/api/generate"',
    "INFO 05-12 02:47:33 [loggers.py:111] Engine 000: Avg generation throughput: 12.8 tokens/s",
    '[INFO] httpx: HTTP Request: POST http://h:1/v1/chat/completions "HTTP/1.1 200 OK"',
]
"""What servers and their clients write of a request that was answered."""
NO_ANSWERS = [
    'INFO:     127.0.0.1:34574 - "POST /v1/chat/completions HTTP/1.1" 400 Bad Request',
    'INFO:     127.0.0.1:34574 - "GET /v1/models HTTP/1.1" 200 OK',
    'DEBUG https://oauth2.lab:443 "POST /token HTTP/1.1" 200 None',
    "INFO 05-12 02:47:33 [loggers.py:111] Engine 000: Avg generation throughput: 0.0 tokens/s",
]
DIED = [
    "ValueError: Free memory on device (13.5/15.9 GiB) on startup is less than desired",
    "ERROR 05-12 [serving_chat.py:136] message='The model `x` does not exist.' type='NotFound'",
    "ValueError: This model's maximum context length is 2048 tokens. However, you requested 5418",
    "CUDA error: an illegal memory access was encountered",
]


def wrong(log: str) -> bool:
    return fails(log) or any(match.rank != "hint" for match in causes(SIGNATURES, log))


@pytest.mark.parametrize("died", DIED)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_server_that_answered_afterwards_was_started_again(died: str, answer: str) -> None:
    assert not wrong(f"{died}\n{answer}\n")
    assert wrong(f"{answer}\n{died}\n")


@pytest.mark.parametrize("died", DIED)
@pytest.mark.parametrize("said", NO_ANSWERS)
def test_a_server_that_only_listens_has_answered_nothing(died: str, said: str) -> None:
    assert wrong(f"{died}\n{said}\n")


def test_what_a_server_does_without_is_not_mended_by_its_answers() -> None:
    log = f"warning: no usable GPU found, --gpu-layers option will be ignored\n{ANSWERS[1]}\n"
    assert first(log) == "gpu-ignored"


RANK = """\
INFO | bench | Generation done in 1.13s.
DONE
INFO | bench | second run
[rank0]: ╭───────── Traceback (most recent call last) ──────────╮
[rank0]: │ ❱ 290 │   spent = now() - begun                      │
[rank0]: ╰──────────────────────────────────────────────────────╯
[rank0]: UnboundLocalError: local variable 'begun' referenced\x20
[rank0]: before assignment
[rank0]:[W718 05:09:57.264809199 ProcessGroupNCCL.cpp:1250] Warning: WARNING: process group has NOT
"""


def test_a_rank_that_dies_behind_one_that_was_done_is_told() -> None:
    assert fails(RANK)
    assert any("UnboundLocalError" in line for line in error_lines(RANK))


PROBE = """\
[WARNING]  async_io: please install the libaio-dev package with apt
/usr/bin/ld: cannot find -laio: No such file or directory
collect2: error: ld returned 1 exit status
"""


@pytest.mark.parametrize(
    "goes_on", ["Loading checkpoint shards:   0%|          | 0/3", "{'loss': 1.12, 'epoch': 2.99}"]
)
def test_what_was_looked_for_before_a_run_worked_was_not_needed(goes_on: str) -> None:
    assert not wrong(f"{PROBE}{goes_on}\n")
    assert first(f"{goes_on}\n{PROBE}") == "link-undefined"


def test_a_library_that_was_missed_and_done_without_is_no_failure() -> None:
    tried = "DEBUG: FFmpeg6 is not there\nTraceback (most recent call last):\n" + (
        "OSError: libavutil.so.58: cannot open shared object file: No such file or directory\n"
    )
    assert first(tried) == "import-library-missing"
    assert not wrong(f"{tried}FFmpeg4 is taken\nRan 1 test in 32.0s\n\nOK\n")
    assert first(f"{tried}FFmpeg4 is taken\nRan 1 test in 32.0s\n\nFAILED (errors=1)\n") != ""


def test_a_solver_that_says_no_error_has_failed() -> None:
    said = "package a-1 has constraint __cuda >=11.0 conflicting with __cuda-10.2-0"
    log = f"Encountered problems while solving:\n  - {said}\n"
    assert first(log) == first(f"  - {said}\n") == "conda-unsatisfiable"


def test_the_message_below_an_exceptions_name_is_told() -> None:
    frames = "".join(f'  File "a.py", line {n}, in f\n    f({n})\n' for n in range(40))
    log = f"x: error: 1\n{frames}ValueError: \n  Some are not\n  on the GPU\n"
    assert [line.strip() for line in error_lines(log)[-3:]] == [
        "ValueError:",
        "Some are not",
        "on the GPU",
    ]


def test_a_server_on_the_cpu_that_answered_wanted_no_gpu() -> None:
    said = 'level=INFO source=gpu.go:377 msg="no compatible GPUs were discovered"\n'
    assert first(said) == "gpu-ignored"
    assert not wrong(f"{said}{ANSWERS[2]}\n")
    assert first(f"NVIDIA_VISIBLE_DEVICES=all\n{said}{ANSWERS[2]}\n") == "gpu-ignored"


@pytest.mark.parametrize(
    ("said", "id"),
    [
        (
            "SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired",
            "certificate-expired",
        ),
        ("SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed", "pip-tls"),
        (
            "x509: certificate has expired or is not yet valid: current time 2026-01-02T00:00:00Z "
            "is after 2025-12-31T23:59:59Z",
            "certificate-expired",
        ),
    ],
)
def test_a_certificate_that_has_run_out_is_no_unknown_one(said: str, id: str) -> None:
    assert [match.id for match in causes(SIGNATURES, f"{said}\n")][:1] == [id]


@pytest.mark.parametrize(
    "verdict",
    [
        "Tool testing complete!",
        'Script done [COMMAND_EXIT_CODE="0"]',
        "BUILD_EXIT_CODE=0",
        "Process finished with exit code 0",
        "Failed: 0/25",
        "40 passed, 0 failed",
        "======= 12 passed, 1 skipped in 3.21s =======",
    ],
)
def test_a_run_tells_that_it_went_well_in_its_last_lines(verdict: str) -> None:
    error = "ERROR: City 'X' not found."
    assert not wrong(f"{error}\nstep 2\n{verdict}\n")
    assert wrong(f"{verdict}\n{error}\n")
    assert wrong(f"{error}\n{verdict}\n" + "step\n" * 9)


@pytest.mark.parametrize(
    "end",
    [
        "INFO:     Application shutdown complete.",
        "abc123: Pull complete",
        "Process finished with exit code 1",
        "Failed: 10/25",
        "=== 1 failed, 12 passed in 3.2s ===",
    ],
)
def test_what_is_no_verdict_on_the_run_mends_nothing(end: str) -> None:
    assert wrong(f"ERROR: frobnicator 7 gave up\nstep 2\n{end}\n")


def test_an_error_behind_a_good_end_counts() -> None:
    assert fails("Nothing to do.\nComplete!\nE: x can't be read\n")
    assert first("Complete!\n[FAILED] x.rpm: No more mirrors to try\n") == "package-download"


@pytest.mark.parametrize(
    ("id", "line"),
    [
        (
            "cuda-headers-missing",
            "x.cu:3: schwerwiegender Fehler: cuda_runtime.h: Datei oder Verzeichnis nicht gefunden",
        ),
        ("libcuda-missing-at-link", "/usr/bin/ld : ne peut trouver -lcuda"),
        ("libcuda-missing-at-link", "/usr/bin/ld: 找不到 -lcuda"),
        (
            "cuda-libraries-missing-at-link",
            "ld: -lcudart kann nicht gefunden werden: Datei oder Verzeichnis nicht gefunden",
        ),
        ("cuda-libraries-missing-at-link", "a.o：对‘cublasCreate_v2’未定义的引用"),
        ("nvcc-not-found", "bash: nvcc : commande introuvable"),
        ("nvcc-not-found", "bash: nvcc: orden no encontrada"),
        ("enospc", "Auf dem Gerät ist kein Speicherplatz mehr verfügbar"),
        ("package-not-found", "E: Impossible de trouver le paquet cuda-toolkit-13-0"),
        ("package-not-found", "E: 无法定位软件包 cuda-toolkit-13-0"),
        ("import-libcuda", "libcuda.so.1: 无法打开共享对象文件: 没有那个文件或目录"),
        ("died-by-signal", "Speicherzugriffsfehler (Speicherabzug geschrieben)"),
    ],
)
def test_a_message_in_another_language_has_its_cause(id: str, line: str) -> None:
    assert first(f"step 1\n{line}\n") == id


@pytest.mark.parametrize(
    ("id", "line"),
    [
        ("rate-limit", "curl: (22) The requested URL returned error: 429"),
        ("rate-limit", "toomanyrequests: You have reached your pull rate limit."),
        ("server-error", "curl: (22) The requested URL returned error: 503"),
        ("server-error", "HTTP Error 502: Bad Gateway"),
        ("download-failed", "curl: (22) The requested URL returned error: 404"),
        ("download-failed", "2026-07-19 14:30:17 ERROR 404: Not Found."),
        (
            "model-download",
            "HTTPError: 403 Client Error: Forbidden for url: https://huggingface.co/x",
        ),
        ("model-download", "get_repo_commit: error: GET failed (404)"),
        ("pip-credentials", "ERROR: HTTP error 401 while getting https://pypi.lab/simple/x/"),
        ("pip-index", "ERROR: HTTP error 404 while getting https://pypi.lab/simple/x/"),
        (
            "container-image-missing",
            "Error response from daemon: unauthorized: authentication required",
        ),
        (
            "container-image-missing",
            "failed to fetch anonymous token: unexpected status: 401 Unauthorized",
        ),
        (
            "repository-missing",
            "  - Status code: 404 for https://m.lab/repodata/repomd.xml (IP: 1.2.3.4)",
        ),
        (
            "package-download",
            "  - Status code: 404 for https://m.lab/repodata/a9f-primary.xml.gz (IP: 1.2.3.4)",
        ),
        ("package-download", "[FAILED] cuda-compat.rpm: No more mirrors to try"),
        (
            "pip-network",
            "  - Curl error (28): Timeout was reached for https://m.lab/repodata/repomd.xml",
        ),
    ],
)
def test_a_download_by_its_status_and_who_asked(id: str, line: str) -> None:
    assert first(f"step 1\n{line}\n") == id


def test_a_word_counts_in_the_mouth_that_it_belongs_to() -> None:
    xid = "NVRM: Xid (PCI:0000:cb:00): 13, Graphics SM Warp Exception: Illegal Instruction Encoding"
    assert first(f"{xid}\n") == "xid-other"
    assert first("Illegal instruction (core dumped)\n") == "illegal-instruction"
    apt = "W: Target Packages is configured multiple times in /etc/apt/sources.list:1\n"
    assert first(f"{apt}The following packages have unmet dependencies:\n") == "packages-conflict"


def test_a_message_that_a_part_of_the_log_cuts_is_found() -> None:
    wrapped = 'exception\nspecification is incompatible with that of previous\nfunction "cospi"\n'
    for before in range(140, 160):
        log = "".join(f"line {n}\n" for n in range(before)) + wrapped + "after\n" * 400
        assert [(match.id, match.number) for match in causes(SIGNATURES, log)] == [
            ("glibc-241-math", before + 1)
        ]
