"""The command that tells what fits: what it says and its exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.layout import Layout
from tests.cli import run
from tests.cli.test_plan import command
from tests.fit import ggufs
from tests.onhost.gguf_files import LANGUAGE_MODEL, gguf


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "L3.2-8X3B.gguf"
    return ggufs.write(path, ggufs.MODELS["moe"])


def test_what_fits_is_told_for_a_gpu_by_name(moe: Path) -> None:
    result = run("fit", moe, "--gpu", "rtx4090", "--ctx", "16384", "--kv", "f16")
    lines = result.output.splitlines()
    assert result.exit_code == 0, result.output
    assert "28 layers and the output" in lines[0]
    assert lines[1] == "GPU 0: GeForce RTX 4090: 24072 MiB free, 1024 of them in reserve"
    assert lines[3] == "fits: n_gpu_layers 29 of 29, n_ctx 16384, kv_type f16"
    assert lines[4].startswith("  GPU 0: 12449 MiB (weights 9665, context 1792, compute ")
    assert lines[-1] == ("profile l32-8x3b: n_gpu_layers 50, which are all 29, n_ctx 16384: fits")


def test_what_does_not_fit_is_told_with_what_to_reduce(moe: Path) -> None:
    result = run("fit", moe, "--vram", "8192", "--ctx", "16384", "--kv", "f16")
    assert result.exit_code == 1
    assert "does not fit: n_gpu_layers 29 of 29, n_ctx 16384, kv_type f16: " in result.output
    assert " MiB too much\n" in result.output
    assert "\nfits: n_gpu_layers 1" in result.output
    assert "profile l32-8x3b" in result.output and ": does not fit: " in result.output


def test_what_gives_up_only_what_was_not_named_fits(moe: Path) -> None:
    result = run("fit", moe, "--gpu", "rtx4090")
    assert result.exit_code == 0
    assert "\nfits: n_gpu_layers 29 of 29, n_ctx 131072, kv_type q8_0\n" in result.output


def test_several_gpus_and_requests(moe: Path) -> None:
    result = run("fit", moe, "--gpu", "4070", "--gpu", "4060", "--ctx", "8192", "--parallel", "2")
    assert result.exit_code == 0
    assert "n_ctx 16384 (2 requests of 8192)" in result.output
    assert "  GPU 1: " in result.output


def test_nothing_fits(moe: Path) -> None:
    result = run("fit", moe, "--vram", "1500")
    assert result.exit_code == 1
    assert "nothing of it fits; next: a smaller model" in result.output


def test_an_architecture_that_was_not_measured_is_said(tmp_path: Path) -> None:
    other = replace(ggufs.MODELS["small"], arch="olmo2")
    path = ggufs.write(tmp_path / "m.gguf", other)
    assert "own account: olmo2 models" in run("fit", path, "--vram", "8192").output


def test_what_only_a_build_can_count_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(LANGUAGE_MODEL | {"llama.ssm.state_size": 128}))
    result = run("fit", path, "--vram", "8192")
    assert result.exit_code == 2
    assert "ssm.state_size; expected keys and values of each layer; next: " in result.output


def test_all_figures_as_json(moe: Path) -> None:
    told = json.loads(run("fit", moe, "--vram", "24000", "--json").output)
    assert told["by"] == "header" and told["shape"]["architecture"] == "llama"
    assert told["offer"]["best"]["placement"]["n_gpu_layers"] == 29


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "expected one of --gpu, --vram and --host"),
        (("--gpu", "rtx4090", "--vram", "1000"), "expected one of --gpu, --vram and --host"),
        (("--gpu", "rtx9999"), "found 'rtx9999'; expected a name such as"),
        (("--gpu", "a100"), "A100 40GB (40960 MiB), A100 80GB SXM (81920 MiB)"),
        (("--gpu", ""), "expected a name such as"),
        (("--vram", "0"), "0 is not in the range"),
        (("--vram", "8192", "--ctx", "1"), "1 is not in the range"),
        (("--vram", "8192", "--kv", "q2_K"), "'q2_K' is not one of"),
    ],
)
def test_bad_arguments(moe: Path, options: tuple[str, ...], said: str) -> None:
    result = run("fit", moe, *options)
    assert result.exit_code == 2
    assert said in result.output


def test_files_that_are_no_whole_model(moe: Path, tmp_path: Path) -> None:
    text, cut = tmp_path / "a.gguf", tmp_path / "b.gguf"
    text.write_text("no model\n")
    cut.write_bytes(moe.read_bytes()[:3000] if moe.stat().st_size < 5000 else _head(moe))
    for path, said in (
        (text, "is no GGUF file"),
        (cut, "ends within its header"),
        (tmp_path / "none.gguf", "no file"),
        (tmp_path, "is a folder"),
    ):
        result = run("fit", path, "--vram", "8192")
        assert (result.exit_code, said in result.output) == (2, True), result.output


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(3000)


def test_a_host_of_the_inventory(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its build answers as onhost.fit does; here a stand-in with this command's own words."""
    (tmp_path / "inventory").write_text('lab = (["@local"], {"scope": "user"})\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    nothing = command(tmp_path, "fit", "/m.gguf", "--host", "@local")
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "@local: found no build; expected one that is switched to" in nothing.stderr
    layout = Layout.user(str(tmp_path))
    python, answer = Path(layout.current, "bin/python"), tmp_path / "answer"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho noise; cat {answer}\n")
    python.chmod(0o755)
    Path(layout.zipapp).touch()
    told = json.loads(run("fit", moe, "--vram", "24000", "--json").output)
    answer.write_text(json.dumps(told | {"by": "llama.cpp"}) + "\n")
    known = command(tmp_path, "fit", "/m.gguf", "--host", "@local")
    assert known.returncode == 0, known.stderr
    assert "counted by the build of that host\n" in known.stdout
    assert "\nfits: n_gpu_layers 29 of 29" in known.stdout and "profile" not in known.stdout
    answer.write_text('{"error": "no file /m.gguf"}')
    wrong = command(tmp_path, "fit", "/m.gguf", "--host", "@local")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "@local: no file /m.gguf" in wrong.stderr


def test_a_context_beyond_the_trained_one_is_said(moe: Path) -> None:
    more = run("fit", moe, "--vram", "80000", "--ctx", "200000").output
    assert "\nnote: 200000 tokens are more than the 131072 that it was trained for\n" in more
    assert "note: " not in run("fit", moe, "--vram", "80000", "--ctx", "131072").output
    each = run("fit", moe, "--vram", "80000", "--ctx", "100000", "--parallel", "2").output
    assert "note: " not in each


def test_a_gpu_that_is_full_is_to_be_left_out(moe: Path) -> None:
    """It takes no layer, and CUDA's context on it is what does not fit."""
    result = run("fit", moe, "--vram", "24000", "--vram", "100", "--ctx", "8192")
    assert result.exit_code == 1
    assert "nothing of it fits; next: leave GPU 1 out, " in result.output
    assert run("fit", moe, "--vram", "24000", "--ctx", "8192").exit_code == 0
