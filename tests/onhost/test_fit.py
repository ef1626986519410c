"""A build on a host counts for its own GPUs; where it can't, the header does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet import zipapps
from llamafleet.onhost import fit
from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.protocol.fit import CONTEXT, KERNELS, MIB, Use, needs
from llamafleet.protocol.offer import Told, Wish
from llamafleet.protocol.serve import Placement
from llamafleet.protocol.shape import Shape
from llamafleet.received import received_json, received_text
from tests.fit import ggufs
from tests.onhost.llama import PYTHON, needs_llama

GPUS = {"gpus": [{"name": "NVIDIA H100", "free_mib": 20000}]}
WHOLE = {"rows": [[4026, 1024, 258]]}
"""As common_fit_print said of the model `dense` with 8192 tokens in f16."""
SAYS = """
import sys
for number, line in enumerate({lines}):
    if number: sys.stdin.readline()
    print(line, flush=True)
"""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shape]:
    path = ggufs.write(tmp_path_factory.mktemp("model") / "d.gguf", ggufs.MODELS["dense"])
    return path, shape_of(modelfile.read(path))


@contextmanager
def saying(*answers: Any) -> Iterator[fit.Counter]:
    """A process that gives these answers, and ends."""
    code = SAYS.format(lines=[json.dumps(one) for one in answers])
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(fit, "command", lambda _model: [sys.executable, "-c", code])
        with fit.counter(Path("m.gguf"), {}) as ask:
            yield ask


def told(shape: Shape, answers: Sequence[Any], wish: Wish | None = None) -> Told:
    with saying(*answers) as ask:
        return fit.tell(shape, ask, wish or Wish(n_ctx=8192, kv_type="f16"), Use(), 1024)


def test_llama_cpp_s_own_figures_are_taken(dense: tuple[Path, Shape]) -> None:
    found = told(dense[1], [GPUS, WHOLE])
    (need,) = found.offer.asked.needed
    assert found.by == "llama.cpp" and found.offer.best == found.offer.asked
    assert (need.weights, need.context, need.compute) == (4027 * MIB, 1025 * MIB, 259 * MIB)
    # CUDA's context is there when the build tells what is free.
    assert KERNELS < need.driver < CONTEXT


def test_what_does_not_fit_is_asked_for_again_and_smaller(dense: tuple[Path, Shape]) -> None:
    big, small = {"rows": [[30000, 1024, 258]]}, {"rows": [[4000, 1, 1]]}
    found = told(dense[1], [GPUS, *[big] * 3, *[small] * 60])
    assert found.offer.asked.missing_mib > 0
    assert found.offer.best is not None and found.offer.best.missing_mib <= 0


def test_a_process_that_dies_leaves_it_to_the_header(dense: tuple[Path, Shape]) -> None:
    found = told(dense[1], [GPUS])
    assert found.by == "header" and "its process ended" in found.note
    assert found.room.gpus[0].free_mib == 20000 + CONTEXT // MIB
    assert found.offer.asked.needed == needs(dense[1], Placement(33, 8192), found.room)


def test_without_a_gpu_or_a_build_nothing_is_told(dense: tuple[Path, Shape]) -> None:
    for answer, said in (({"gpus": []}, "found no GPU"), ({"error": "no build: x"}, "no build")):
        with pytest.raises(fit.CountError, match=said):
            told(dense[1], [answer])


def test_what_only_llama_cpp_can_tell_is_not_guessed(dense: tuple[Path, Shape]) -> None:
    hybrid = replace(dense[1], unknown="it keeps a state: ssm.x")
    assert told(hybrid, [GPUS, WHOLE]).by == "llama.cpp"
    with pytest.raises(fit.CountError):
        told(hybrid, [GPUS])


def test_what_is_printed_is_read_on_the_controller(
    dense: tuple[Path, Shape], capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(dense[1], [GPUS, WHOLE])
    assert received_text(Told, json.dumps(asdict(found))) == found
    assert fit.main(["--model", "/dev/null"]) == 1
    assert "no regular file" in json.loads(capsys.readouterr().out)["error"]


@needs_llama
def test_the_real_build_counts_for_the_cpu(dense: tuple[Path, Shape], tmp_path: Path) -> None:
    """It has no GPU here, which the command says; its function is there and counts the host."""
    zipapp = tmp_path / "host.pyz"
    zipapp.write_bytes(zipapps.host_zipapp())
    argv = [PYTHON, "-I", zipapp, "fit", "--model", dense[0]]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "found no GPU that the build sees" in received_json(done.stdout)["error"]
    code = (
        f"import sys; sys.path[0:0] = [{str(zipapp)!r}]; import llama_cpp; "
        "from pathlib import Path; from llamafleet.onhost import fit; "
        "from llamafleet.protocol.fit import Use; from llamafleet.protocol.serve import Placement; "
        f"print(fit.count(llama_cpp, Path({str(dense[0])!r}), Placement(-1, 8192), Use()))"
    )
    done = subprocess.run(
        [PYTHON, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip().endswith("[]"), done.stderr
