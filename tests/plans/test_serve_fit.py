"""Layers that are to be fitted: how many a service gets, and beside which others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.plan import ModelsPlan
from llamafleet.plans.serve import _placement, fit_problems
from llamafleet.plans.served_models import plan_models
from llamafleet.plans.supplies import Supplies
from llamafleet.protocol.serve import Placement
from llamafleet.settings import Settings
from tests.plans.hosts import GPU_HOST, LAYOUT, gpu
from tests.plans.test_served_models import A, B, placed, url
from tests.protocol.test_fit import PARALLEL

LLAMA = replace(PARALLEL, architecture="llama", weights=(500 << 20,) * 32, keys=(1024,) * 32,
                values=(1024,) * 32)  # fmt: skip
"""16 GiB of weights."""
ALL = 33


def wanted(**profiles: dict[str, Any]) -> Settings:
    ports = {name: {"port": 8000 + at} for at, name in enumerate(profiles)}
    return Settings.model_validate(
        {"serve": {name: {**ports[name], **told} for name, told in profiles.items()}}
    )


def there(count: int = 1) -> HostSnapshot:
    models = [placed(A), placed(B)]
    products = [one.product for one in models]
    shaped = [
        replace(one, product=replace(product, shape=LLAMA))
        for one, product in zip(models, products, strict=True)
        if product
    ]
    return replace(
        GPU_HOST,
        models={one.name: one for one in shaped},
        gpus=tuple(gpu("8.9", index=at) for at in range(count)),
    )


def layers(settings: Settings, snapshot: HostSnapshot, name: str) -> int | str:
    models = plan_models(settings, snapshot, LAYOUT, python="/usr/bin/python3", supplies=Supplies())
    assert isinstance(models, ModelsPlan)
    problems = list(fit_problems(settings, snapshot, models))
    for problem in problems:
        if problem.check == f"serve.{name}":
            return problem.found
    placement = _placement(name, settings.serve[name], settings, snapshot, models)
    assert isinstance(placement, Placement)
    return placement.n_gpu_layers


def test_all_layers_where_they_fit() -> None:
    assert layers(wanted(chat=url(A, n_gpu_layers="fit")), there(), "chat") == ALL


def test_a_reserve_is_left_free() -> None:
    settings = wanted(chat=url(A, n_gpu_layers="fit", reserve_mib=12_000))
    found = layers(settings, there(), "chat")
    assert isinstance(found, int) and 15 < found < ALL


def test_a_second_service_gets_what_the_first_one_leaves() -> None:
    """Both counted the whole card: the second one ran out of memory at each start."""
    settings = wanted(chat=url(A, n_gpu_layers="fit"), code=url(B, n_gpu_layers="fit"))
    assert layers(settings, there(), "chat") == ALL
    found = layers(settings, there(), "code")
    assert isinstance(found, int) and 1 < found < 15


def test_what_is_stated_comes_first() -> None:
    settings = wanted(chat=url(A, n_gpu_layers="fit"), code=url(B, n_gpu_layers=20))
    found = layers(settings, there(), "chat")
    assert isinstance(found, int) and 1 < found < 25
    assert layers(settings, there(), "code") == 20


def test_where_nothing_is_left_it_is_a_problem() -> None:
    settings = wanted(chat=url(A, n_gpu_layers="fit"), code=url(B, n_gpu_layers=-1, n_ctx=45_000))
    assert "MiB more than it has" in str(layers(settings, there(), "chat"))


def test_gpus_of_its_own_are_its_own() -> None:
    snapshot = there(2)
    settings = wanted(
        chat=url(A, n_gpu_layers="fit", gpus=["0"]),
        code=url(B, n_gpu_layers="fit", gpus=["1"]),
    )
    assert (layers(settings, snapshot, "chat"), layers(settings, snapshot, "code")) == (ALL, ALL)
