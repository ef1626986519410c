"""A history in each database that there is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from llamafleet.history.records import History
from tests.history.postgres import programs, serving


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real server."""
    if programs() is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    # Not below tmp_path: a socket's name has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="llamafleet-pg-"))
    try:
        with serving(folder) as url:
            yield url
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def history(request: pytest.FixtureRequest, tmp_path: Path) -> History:
    """An empty one over an empty folder of results."""
    if request.param == "sqlite":
        return History(tmp_path)
    url: str = request.getfixturevalue("postgres")
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return History(tmp_path, url)
