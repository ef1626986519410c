"""`llamafleet upstream` at an index: exit codes, the row, and an index that lies."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llamafleet import tables
from tests.cli import run
from tests.upstream.test_compare import RELEASES

KNOWN, NEW = "0.3.34", "0.3.35"


def archived(version: str) -> str:
    return f"llama_cpp_python-{version}.tar.gz"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Path]:
    """Extracts of two releases, of which the table knows the older alone."""
    page = tmp_path / "simple/llama-cpp-python"
    page.mkdir(parents=True)
    table = yaml.safe_load(tables.text("releases.yaml"))
    rows = [row for row in table["releases"] if row["version"] == KNOWN]
    for version in (KNOWN, NEW):
        shutil.copy(RELEASES / f"llama_cpp_python-{version}.tar.xz", page / archived(version))
    rows[0]["sha256"] = sha256_of(page / archived(KNOWN))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/releases.yaml").write_text(yaml.safe_dump(table | {"releases": rows}))
    list_files(page)
    with tables.overlaid(tmp_path / "tables"):
        yield page


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def list_files(page: Path, told: str = "") -> None:
    links = (
        f'<a href="{file.name}#sha256={told or sha256_of(file)}">x</a>'
        for file in sorted(page.glob("*.tar.gz"))
    )
    (page / "index.html").write_text("".join(links))


def upstream(page: Path, *arguments: str) -> tuple[int, str]:
    done = run("upstream", *arguments, "--index-url", f"file://{page.parent}")
    return done.exit_code, done.output


def test_the_newest_one_is_compared_and_its_row_is_printed(index: Path) -> None:
    code, said = upstream(index)
    assert code == 1
    lines = said.splitlines()
    assert lines[0] == f"llama-cpp-python {NEW} against {KNOWN} of 2026-07-12"
    assert lines[1:3] == [
        f"sha256 {sha256_of(index / archived(NEW))}",
        "! field llama_model_params.use_mmap: gone",
    ]
    head = next(number for number, line in enumerate(lines) if line.startswith("row for "))
    (row,) = yaml.safe_load("\n".join(lines[head + 1 :]))
    assert (row["version"], row["sha256"]) == (NEW, sha256_of(index / archived(NEW)))
    assert "LLAMA_SUBPROCESS" in row["has"]


def test_what_is_known_already_is_nothing_to_compare(index: Path) -> None:
    (index / archived(NEW)).unlink()
    list_files(index)
    told = f"{KNOWN}: the newest at the index, and known: nothing to compare\n"
    assert upstream(index) == (0, told)
    code, said = upstream(index, KNOWN, "--against", KNOWN)
    assert code == 0 and said.endswith("0 changes, 0 of what is used here\n")


@pytest.fixture
def both(index: Path, tmp_path: Path) -> Iterator[Path]:
    """The table knows both."""
    table = yaml.safe_load(tables.text("releases.yaml"))
    newer = {**table["releases"][0], "version": NEW, "sha256": sha256_of(index / archived(NEW))}
    (tmp_path / "both").mkdir()
    rows = table | {"releases": [newer, *table["releases"]]}
    (tmp_path / "both/releases.yaml").write_text(yaml.safe_dump(rows))
    with tables.overlaid(tmp_path / "both"):
        yield index


def test_a_known_one_is_compared_with_the_one_before_it(both: Path) -> None:
    """Not the newest with itself, nor an older one with what came after it."""
    code, said = upstream(both, NEW)
    assert code == 1 and said.startswith(f"llama-cpp-python {NEW} against {KNOWN} of ")
    code, said = upstream(both, KNOWN)
    assert code == 2 and f"found {KNOWN}, and none that is older is known" in said


def test_an_index_that_lags_behind_is_not_called_new(both: Path) -> None:
    (both / archived(NEW)).unlink()
    list_files(both)
    told = f"{KNOWN}: the newest at the index, and known: nothing to compare\n"
    assert upstream(both) == (0, told)


def test_a_release_that_was_taken_back_is_not_the_newest(index: Path) -> None:
    text = (index / "index.html").read_text()
    (index / "index.html").write_text(
        text.replace(f'<a href="{archived(NEW)}', f'<a data-yanked="bad" href="{archived(NEW)}')
    )
    assert upstream(index)[1].startswith(f"{KNOWN}: the newest at the index")


def test_archives_that_are_kept_are_not_fetched_again(index: Path, tmp_path: Path) -> None:
    assert upstream(index, "--keep", str(tmp_path / "kept"))[0] == 1
    (index / archived(KNOWN)).unlink()
    assert upstream(index, "--keep", str(tmp_path / "kept"))[0] == 1
    assert upstream(index)[0] == 2


def test_an_index_with_another_archive_than_the_table_s_is_refused(index: Path) -> None:
    shutil.copy(index / archived(NEW), index / archived(KNOWN))
    list_files(index)
    code, said = upstream(index)
    assert code == 2 and f"found sha256 {sha256_of(index / archived(NEW))}, expected " in said


def test_an_archive_that_is_not_what_the_index_tells_is_refused(index: Path) -> None:
    list_files(index, told="0" * 64)
    code, said = upstream(index, NEW)
    assert code == 2 and f"expected {'0' * 64}" in said


def test_bad_input(index: Path) -> None:
    code, said = upstream(index, "../9.9.9")
    assert code == 2 and "expected a released version" in said
    for more in ((), ("--against", "0.3.35")):
        code, said = upstream(index, "0.3.036", *more)
        assert code == 2 and "found 0.3.036; expected 0.3.36, as that release is named" in said
    code, said = upstream(index, "9.9.9")
    assert code == 2 and "none of that name" in said
    code, said = upstream(index, NEW, "--against", "0.2.0")
    assert code == 2 and f"found 0.2.0; expected one of {KNOWN}" in said
    (index / archived("0.3.40")).write_bytes((index / archived(NEW)).read_bytes())
    list_files(index)
    code, said = upstream(index, "0.3.40")
    assert code == 2 and f"0.3.40: found {NEW} in its archive" in said


def test_an_archive_of_something_else(index: Path) -> None:
    with tarfile.open(index / archived("0.3.41"), "w:gz") as made:
        made.addfile(tarfile.TarInfo("llama_cpp_python-0.3.41/README.md"), io.BytesIO())
    list_files(index)
    code, said = upstream(index)
    assert code == 2 and "holds no llama_cpp/llama_cpp.py" in said
