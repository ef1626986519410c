"""Each rendered file against its golden copy: a change of a template is seen as a diff."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from llamafleet import render
from llamafleet.layout import DRIVER_CHECK_UNIT, VERIFY_UNIT, Layout
from llamafleet.managed import Group, by_path, profile_rows, rows
from llamafleet.plans.network import Network
from llamafleet.plans.plan import BuildPlan, HoldPlan, ModelsPlan, Plan
from llamafleet.plans.serve import plan_serve
from llamafleet.plans.serve_libraries import plan_libraries
from llamafleet.plans.served_models import plan_models
from llamafleet.plans.supplies import Supplies
from llamafleet.plans.toolkit.installation import REPOSITORY_PATHS
from llamafleet.plans.toolkit.methods import offers
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import PATH
from llamafleet.protocol.serve import ServeConfig
from llamafleet.protocol.verify import VerifyConfig
from llamafleet.settings import Settings
from tests.plans.hosts import GPU_HOST, build_of, verification
from tests.protocol.test_verify import good

GOLDEN = Path(__file__).parent / "golden"
CONFIG = replace(
    build_of(GPU_HOST).config,
    key="0123456789abcdef",
    cmake_args=("-DGGML_CUDA=on", "-DCMAKE_CUDA_ARCHITECTURES=86;89", "-DCMAKE_CXX_FLAGS=-O2 -g"),
    environment={
        "GGML_CUDA": "1",
        "FORCE_CMAKE": "1",
        "LD_LIBRARY_PATH": "/usr/local/cuda-13.0/lib64",
        "CMAKE_BUILD_PARALLEL_LEVEL": "8",
    },
)
BUILD = BuildPlan(CONFIG, action="none", reason="", proof="")
VERIFY = verification("fedcba9876543210", decode(VerifyConfig, good()))
PLAN = Plan(host="gpu-a", backend="cuda", build=BUILD, verify=VERIFY)


def rendered(
    layout: Layout, settings: Settings, plan: Plan = PLAN, group: Group = "settings"
) -> dict[str, str]:
    """Each file of the group, by its name."""
    if plan.build:
        config = replace(plan.build.config, prefix=layout.version(CONFIG.key))
        plan = replace(plan, build=replace(plan.build, config=config))
    return {
        Path(row.path(layout)).name: render.content(row, plan, settings, layout).decode()
        for row in rows(layout, group)
    }


def compare(golden: Path, text: str) -> None:
    if os.environ.get("LLAMAFLEET_UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text(), f"LLAMAFLEET_UPDATE_GOLDEN=1 rewrites {golden}"


@pytest.mark.parametrize("scope", ["system", "user"])
def test_every_file_is_its_golden_copy(scope: str) -> None:
    layout = Layout.system() if scope == "system" else Layout.user("/home/ada")
    told = {"scope": scope, "metrics_folder": "/var/lib/prometheus/node-exporter"}
    files = rendered(layout, Settings.model_validate(told))
    units = {row.unit for row in rows(layout, "settings") if row.unit}
    assert set(files) == {"llamafleet.env", "verify.json", *units}
    # Of the plan alone: tests/plans/test_verify.py.
    del files["verify.json"]
    for name, text in files.items():
        compare(GOLDEN / scope / name, text)


SERVE = {
    "chat": {"model": "/srv/a.gguf", "api_key_file": "/k", "address": "0.0.0.0", "mlock": True},
    "code": {"model": "/srv/b.gguf", "port": 8001},
}


def serving(layout: Layout, settings: Settings, systemd: int = 257) -> dict[str, str]:
    """Each file of these two profiles, and the units that know of them, by their names."""
    host = replace(GPU_HOST, systemd=systemd, init="systemd")
    config = plan_libraries(
        settings,
        layout,
        Network({}, None, None),
        python="/usr/bin/python3",
        version="3.12.3",
    )
    models = plan_models(settings, host, layout, python="/usr/bin/python3", supplies=Supplies())
    assert isinstance(models, ModelsPlan)
    plan = replace(PLAN, models=models)
    plan = replace(plan, serve=plan_serve(plan, settings, host, layout, libraries=config))
    supplies = Supplies(serve_keys={"chat": "sk-0123456789"})
    served = [row for name in settings.serve for row in profile_rows(name)]
    ours = [row for row in served if row.profile == "chat" or not row.private]
    return {
        Path(row.path(layout)).name: render.content(row, plan, settings, layout, supplies).decode()
        for row in (*rows(layout, "serve"), *ours)
    }


@pytest.mark.parametrize("scope", ["system", "user"])
def test_files_of_what_is_served(scope: str) -> None:
    layout = Layout.system() if scope == "system" else Layout.user("/home/ada")
    wanted = {name: row | {"mlock": False} for name, row in SERVE.items()}
    serve = SERVE if scope == "system" else wanted
    settings = Settings.model_validate({"scope": scope, "serve": serve})
    files = serving(layout, settings)
    assert files.pop("serve-chat.key") == "sk-0123456789\n"
    assert not any("sk-0123456789" in text for text in files.values())
    assert decode(ServeConfig, json.loads(files["serve-code.json"])).port == 8001
    units = rendered(layout, settings)
    files |= {f"serving-{name}": units[name] for name in (VERIFY_UNIT, DRIVER_CHECK_UNIT)}
    for name, text in files.items():
        compare(GOLDEN / scope / name, text)


def test_files_of_the_hold() -> None:
    hold = HoldPlan("", record=("libcuda1:amd64", "libcuda1:i386", "nvidia-driver-580"))
    files = rendered(Layout.system(), Settings(), Plan("gpu-a", "cuda", hold=hold), "hold")
    assert set(files) == {"held-packages", "52llamafleet-hold-driver"}
    for name, text in files.items():
        compare(GOLDEN / "system" / name, text)


REPOSITORIES = [
    ("ubuntu", "22.04", "x86_64", "12.8"),
    ("ubuntu", "24.04", "aarch64", "13.3"),
    ("debian", "12", "x86_64", "12.4"),
    ("debian", "13", "x86_64", "13.1"),
    ("rhel", "8", "x86_64", "12.4"),
    ("rhel", "9", "aarch64", "13.4"),
    ("fedora", "42", "x86_64", "13.0"),
]


@pytest.mark.parametrize(("os_id", "version", "arch", "cuda"), REPOSITORIES)
def test_files_of_a_repository(os_id: str, version: str, arch: str, cuda: str) -> None:
    manager = "apt" if os_id in ("ubuntu", "debian") else "dnf"
    host = replace(GPU_HOST, os_id=os_id, os_version=version, arch=arch, package_manager=manager)
    wanted = Settings.model_validate({"toolkit_method": manager})
    offered = {o.version: o.source for o in offers(host, wanted, Layout.system(), None)}
    source = offered[cuda]
    assert source is not None and source.repository is not None and source.manager is not None
    named, keyring, _ = REPOSITORY_PATHS[source.manager]
    files = render.repository_files(source.repository, source.manager, keyring)
    for path, text in files.items():
        compare(GOLDEN / "repositories" / f"{os_id}{version}-{arch}" / Path(path).name, text)
    assert named in files and keyring in files[named]
    assert {keyring, *files} < set(by_path(Layout.system()))


def test_the_environment_is_the_same_to_a_shell_and_to_systemd(tmp_path: Path) -> None:
    env = tmp_path / "llamafleet.env"
    env.write_text(rendered(Layout.system(), Settings())["llamafleet.env"])
    shell = subprocess.run(
        ["sh", "-c", f'. {env}; printf "%s" "$CMAKE_ARGS"'],
        capture_output=True,
        text=True,
        check=False,
    )
    # scikit-build-core splits CMAKE_ARGS as a shell does.
    assert tuple(shlex.split(shell.stdout)) == CONFIG.cmake_args, shell


def test_people_s_own_processes_get_the_chosen_gpus_alone() -> None:
    config = replace(VERIFY.config, gpus=("GPU-a", "GPU-b"))
    made = replace(PLAN, verify=replace(VERIFY, config=config))
    text = rendered(Layout.system(), Settings(), made)["llamafleet.env"]
    assert 'CUDA_VISIBLE_DEVICES="GPU-a,GPU-b"\n' in text
    assert "CUDA_VISIBLE_DEVICES" not in rendered(Layout.system(), Settings())["llamafleet.env"]


@pytest.mark.parametrize("bad", ['a"b', "a$HOME", "a\nb", "a`b`", "a\\b"])
def test_a_value_that_a_shell_would_change_is_refused(bad: str) -> None:
    build = replace(BUILD, config=replace(CONFIG, environment={"X": bad}))
    with pytest.raises(ValueError, match="X: "):
        rendered(Layout.system(), Settings(), replace(PLAN, build=build))


def test_a_variable_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render._jinja.get_template("llamafleet-verify.timer.j2").render()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
@pytest.mark.parametrize("planted", [False, True])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, planted: bool) -> None:
    layout = Layout("user", str(tmp_path), str(tmp_path), str(tmp_path), str(tmp_path))
    serve = {"code": SERVE["code"]}
    data = {"scope": "user", "serve": serve, "verify_pauses_serving": True}
    settings = Settings.model_validate(data)
    # Of a systemd that does not know all of it, a unit has what it knows.
    files = rendered(layout, settings) | serving(layout, settings, systemd=252)
    served = profile_rows("code")
    names = [row.unit for row in (*rows(layout), *served) if row.unit]
    for name in names:
        text = files[name].replace("Type=oneshot", "Type=once") if planted else files[name]
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / name for name in names)],
        capture_output=True,
        text=True,
        check=False,
    )
    clean = done.returncode == 0 and str(tmp_path) not in done.stderr
    assert clean is not planted, done.stderr


def test_the_verification_settings_are_the_same_bytes_for_the_same_plan() -> None:
    first, second = (rendered(Layout.system(), Settings())["verify.json"] for _ in range(2))
    assert first == second
    defaults = {"environment": {}, "as_account": [], "gpus": [], "busy_minutes": 5}
    assert json.loads(first) == good() | defaults | {"allow_busy": False, "timer": True}


def test_units_run_the_planned_build_whatever_current_is() -> None:
    """In an environment of their own: a user's manager has that of the login."""
    files = rendered(Layout.system(), Settings())
    prefix = Layout.system().version(CONFIG.key)
    for name, command in ((VERIFY_UNIT, "verify"), (DRIVER_CHECK_UNIT, "driver-check")):
        assert f"ConditionPathExists={prefix}\n" in files[name]
        assert (
            f"ExecStart=/usr/bin/env -i PATH={PATH} LC_ALL=C.UTF-8 {prefix}/bin/python -I "
            f"/opt/llamafleet/llamafleet-host.pyz {command} --config /etc/llamafleet/verify.json\n"
        ) in files[name]
        assert "EnvironmentFile" not in files[name] and "current" not in files[name]
