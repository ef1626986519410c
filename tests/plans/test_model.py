"""A model that a verification could not open stops the host before anything is built."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.plans.hosts import GPU_HOST, plan

MODEL = "/srv/models/m.gguf"


def test_a_model_that_is_not_there() -> None:
    (problem,) = plan(replace(GPU_HOST, unreadable=(MODEL,)), model=MODEL).problems
    assert (problem.check, problem.found) == ("model", f"no file {MODEL}")


def test_a_model_that_the_account_can_t_read() -> None:
    host = replace(GPU_HOST, unreadable=(MODEL,), extra_there=(MODEL,))
    (problem,) = plan(host, model=MODEL).problems
    assert problem.found == f"{MODEL}, which the account llamafleet can't read"
    assert problem.next.startswith(f"namei -l {MODEL}; then chmod o+rX")


def test_a_host_that_was_recorded_for_other_settings_says_nothing_of_it() -> None:
    assert plan(GPU_HOST, model=MODEL).problems == ()
    assert plan(replace(GPU_HOST, unreadable=("/opt/cuda",)), model=MODEL).problems == ()


@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp"])
def test_a_model_that_the_unit_of_the_verification_does_not_see(folder: str) -> None:
    model = f"{folder}/m.gguf"
    (problem,) = plan(replace(GPU_HOST, init="systemd"), model=model).problems
    assert f"{model}: its unit has a {folder} of its own" in problem.found
    assert problem.next.startswith(f"move it out of {folder}")
    assert plan(replace(GPU_HOST, init="none"), model=model).problems == ()
    assert plan(replace(GPU_HOST, init="systemd"), model=f"/srv{model}").problems == ()
    user = plan(replace(GPU_HOST, init="systemd"), model=model, scope="user")
    assert "model" not in {problem.check for problem in user.problems}
