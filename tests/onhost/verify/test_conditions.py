"""What NVML tells of a GPU over a benchmark, by a fake NVML with a real card's answers, and what it
means. Each state must make the figures busy, or leave them as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from llamafleet.onhost.verify.conditions import Watch
from llamafleet.onhost.verify.freedom import Finding
from llamafleet.onhost.verify.gpu import Nvml
from llamafleet.onhost.verify.measuring import at_rest, judged
from llamafleet.onhost.verify.sampling import Sampler
from llamafleet.protocol.conditions import Conditions
from llamafleet.protocol.result import Benchmark, Rates
from tests.fakenvml import Fake, fake_nvml, fake_nvml_library

__all__ = ["fake_nvml", "fake_nvml_library"]

WORKER = 4242
MARKS = ("measuring", "pp", "pp done", "tg", "tg done", "measured")
NS_PER_S = 10**9
QUIET = Rates(128, median_ts=350.0, stdev_ts=1.6, samples_ts=(350.0,) * 5)

Change = Callable[[Fake], object]


def unchanged(_: Fake) -> None:
    """As it was recorded."""


def gpu_of_ours(fake: Fake) -> None:
    """The worker has loaded its model."""
    fake.processes("Compute", (WORKER, 2536))
    fake.memory(2544)
    fake.say("nvmlDeviceGetUtilizationRates", value=(50, 19))
    fake.say("nvmlDeviceGetClockInfo", 1, value=1980)
    fake.say("nvmlDeviceGetCurrentClocksThrottleReasons", value=0)


def gpu_left(fake: Fake) -> None:
    fake.processes("Compute")
    fake.memory(0)
    fake.say("nvmlDeviceGetUtilizationRates", value=(0, 0))


def watched(
    fake: Fake,
    *,
    before: Change = unchanged,
    during: Change = unchanged,
    at: str = "tg",
    after: Change = unchanged,
    seconds: float = 2.0,
) -> Conditions:
    """One benchmark; `during` happens at that mark, the clock is moved on by `seconds` there."""
    before(fake)
    nvml = Nvml()
    gpus = nvml.gpus()
    watch = Watch(nvml, gpus, sleep=lambda _: None)
    gpu_of_ours(fake)
    sampler = Sampler(nvml, WORKER, gpus, interval_s=60)
    sampler.start()
    for mark in MARKS:
        if mark == at:
            during(fake)
        sampler.mark(mark)
        sampler.recording.samples.append(sampler._sample())
    recording = sampler.stop()
    first, last = recording.marks["measuring"], recording.marks["measured"]
    recording.marks["measured"] = replace(last, at=first.at + seconds)
    gpu_left(fake)
    after(fake)
    (conditions,) = watch.ended(recording)
    return conditions


def findings(
    conditions: Conditions, fake: Fake, pp: Rates = QUIET, tg: Rates = QUIET
) -> list[Finding]:
    told = judged(Benchmark(pp, tg, conditions=(conditions,)), Nvml().gpus())
    assert told.benchmark.busy == tuple(one.text for one in told.busy)
    return list(told.findings)


def busy(conditions: Conditions, fake: Fake) -> list[str]:
    return [one.text for one in findings(conditions, fake) if one.weight == "busy"]


def test_a_free_card_is_not_busy_and_tells_all_it_has(fake_nvml: Fake) -> None:
    seen = watched(fake_nvml)
    assert findings(seen, fake_nvml) == []
    assert (seen.others, seen.idle_utilisation, seen.held_mib) == ((), 0, 0)
    assert (seen.sm_clock_mhz, seen.sm_clock_max_mhz, seen.memory_clock_mhz) == (1980, 1980, 3201)
    assert (seen.power_limit_w, seen.power_default_w, seen.power_max_w) == (700, 700, 700)
    assert (seen.pcie_generation, seen.pcie_width) == (5, 16)
    assert (seen.display_active, seen.persistence) == (False, True)
    assert set(seen.throttled_s) == {
        *("power", "thermal", "sync boost", "board limit"),
        *("software thermal", "hardware thermal", "power brake"),
    }
    assert seen.health.recovery_action == 0 and seen.health.rows_pending is False


@pytest.fixture
def stranger() -> Iterator[int]:
    """The pid of a process that is none of this one's: its parent has ended."""
    code = "import subprocess as s; print(s.Popen(['sleep', '300'], stdout=s.DEVNULL).pid)"
    run = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    pid = int(run.stdout)
    yield pid
    os.kill(pid, 9)


@pytest.mark.parametrize("kind", ["Compute", "MPSCompute"])
def test_another_process_is_named(fake_nvml: Fake, stranger: int, kind: str) -> None:
    """Measured before: PASS with tg128 64.8 in place of 343.9 t/s, and no word about it."""
    seen = watched(fake_nvml, before=lambda fake: fake.processes(kind, (stranger, 700)))
    (other,) = seen.others
    assert (other.pid, other.user, other.command) == (stranger, "root", "sleep 300")
    (finding,) = findings(seen, fake_nvml)
    assert finding.text == (
        f"another process on GPU 0: pid {stranger} (root, sleep 300, 700 MiB, "
        f"{'compute' if kind == 'Compute' else 'MPS'})"
    )
    assert f"ps -fp {stranger}" in finding.next and not finding.standing


def test_a_process_that_comes_in_the_middle_and_goes_is_named(
    fake_nvml: Fake, stranger: int
) -> None:
    def comes(fake: Fake) -> None:
        fake.processes("Compute", (WORKER, 2536), (stranger, 700))

    assert f"pid {stranger}" in "".join(busy(watched(fake_nvml, during=comes), fake_nvml))


def test_own_processes_are_no_others(fake_nvml: Fake) -> None:
    """A worker of another GPU is a child of this process too."""
    with subprocess.Popen(["sleep", "300"]) as child:
        try:
            seen = watched(
                fake_nvml,
                during=lambda fake: fake.processes("Compute", (child.pid, 10), (WORKER, 9)),
            )
        finally:
            child.kill()
    assert seen.others == ()


def test_a_desktop_is_no_other_process_until_it_works(fake_nvml: Fake, stranger: int) -> None:
    def desktop(fake: Fake) -> None:
        fake.processes("Graphics", (stranger, 300))
        fake.memory(700)
        fake.say("nvmlDeviceGetDisplayActive", value=1)
        fake.say("nvmlDeviceGetPersistenceMode", value=0)

    seen = watched(fake_nvml, before=desktop)
    notes = findings(seen, fake_nvml)
    assert {one.weight for one in notes} == {"note"}
    said = "; ".join(one.text for one in notes)
    assert "drives a display" in said and "persistence mode is off" in said and "sleep" in said

    def at_work(fake: Fake) -> None:
        desktop(fake)
        fake.say("nvmlDeviceGetUtilizationRates", value=(40, 3))

    assert busy(watched(fake_nvml, before=at_work), fake_nvml) == [
        "GPU 0 was at 40 % while we did nothing"
    ]


# -- where pids are another container's, or hidden -------------------------------------------------


def hidden(fake: Fake) -> None:
    """A container that shows no process at all."""
    for kind in ("Compute", "Graphics", "MPSCompute"):
        fake.processes(kind)


def blind(fake: Fake, before: Change = unchanged, during: Change = unchanged) -> Conditions:
    """A benchmark in such a container."""
    nvml = Nvml()
    hidden(fake)
    before(fake)
    watch = Watch(nvml, nvml.gpus(), sleep=lambda _: None)
    fake.memory(2544)
    sampler = Sampler(nvml, WORKER, nvml.gpus(), interval_s=60)
    sampler.start()
    for mark in MARKS:
        if mark == "tg done":
            during(fake)
        sampler.mark(mark)
        sampler.recording.samples.append(sampler._sample())
    recording = sampler.stop()
    fake.memory(0)
    before(fake)
    (conditions,) = watch.ended(recording)
    return replace(conditions, sm_clock_mhz=1980)


def test_without_pids_memory_is_the_witness(fake_nvml: Fake) -> None:
    assert busy(blind(fake_nvml), fake_nvml) == []
    taken = blind(fake_nvml, before=lambda fake: fake.memory(70 * 1024))
    assert busy(taken, fake_nvml) == ["71680 MiB of GPU 0 were in use that no listed process holds"]
    fake_nvml.memory(0)
    came = blind(fake_nvml, during=lambda fake: fake.memory(2544 + 600))
    assert busy(came, fake_nvml) == ["others took 600 MiB of GPU 0 during the measurement"]


def test_without_pids_work_is_seen_while_we_do_nothing(fake_nvml: Fake) -> None:
    at_work = blind(
        fake_nvml,
        before=lambda fake: fake.say("nvmlDeviceGetUtilizationRates", value=(100, 30)),
    )
    assert "GPU 0 was at 100 % while we did nothing" in busy(at_work, fake_nvml)


def test_work_that_began_meanwhile_and_goes_on_is_seen(fake_nvml: Fake, stranger: int) -> None:
    """A game, a program of Vulkan: no compute process, its memory listed, nothing there before."""

    def game(fake: Fake) -> None:
        fake.processes("Graphics", (stranger, 700))
        fake.memory(700)
        fake.say("nvmlDeviceGetUtilizationRates", value=(80, 40))

    assert busy(watched(fake_nvml, after=game), fake_nvml) == [
        "GPU 0 was at 80 % while we did nothing"
    ]


@pytest.mark.parametrize(("pids", "more"), [((99999991,), 0), ((99999991, 99999992), 1)])
def test_pids_of_another_container_are_counted(
    fake_nvml: Fake, pids: tuple[int, ...], more: int
) -> None:
    """The worker is one of them, under the pid that it has on the host."""
    nvml = Nvml()
    watch = Watch(nvml, nvml.gpus(), sleep=lambda _: None)
    gpu_of_ours(fake_nvml)
    fake_nvml.processes("Compute", *((pid, 2544 / len(pids)) for pid in pids))
    sampler = Sampler(nvml, WORKER, nvml.gpus(), interval_s=60)
    sampler.start()
    for mark in MARKS:
        sampler.mark(mark)
    recording = sampler.stop()
    gpu_left(fake_nvml)
    (seen,) = watch.ended(recording)
    assert (seen.others, seen.others_unnamed) == ((), more)
    text = "1 more processes on GPU 0 than ours, outside this container"
    assert busy(seen, fake_nvml) == [text] * more


# -- slowed down, capped, held -------------------------------------------------------------------


def violated(policy: int, seconds: float) -> Change:
    def grow(fake: Fake) -> None:
        fake.say("nvmlDeviceGetViolationStatus", policy, value=(1, int(seconds * NS_PER_S)))

    return grow


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (violated(1, 0.06), "GPU 0 was slowed down (thermal) for 0.06 s of 2.0"),
        (violated(2, 0.1), "GPU 0 was slowed down (sync boost) for 0.10 s of 2.0"),
        (
            lambda fake: fake.field(269, 50_000_000),
            "GPU 0 was slowed down (software thermal) for 0.05 s of 2.0",
        ),
        (
            lambda fake: fake.field(271, 50_000_000),
            "GPU 0 was slowed down (power brake) for 0.05 s of 2.0",
        ),
    ],
)
def test_time_that_nvml_counts_is_a_slowdown(fake_nvml: Fake, change: Change, text: str) -> None:
    """Between two samples too: the counter grew while no sample showed a reason."""
    assert busy(watched(fake_nvml, during=change), fake_nvml) == [text]


@pytest.mark.parametrize(
    "change",
    [
        violated(0, 0.09),
        violated(1, 0.01),
        violated(3, 0.09),
        violated(4, 2.0),
        violated(5, 0.09),
        violated(1, 5000.0),
        lambda fake: fake.say("nvmlDeviceGetCurrentClocksThrottleReasons", value=0x4),
    ],
)
def test_what_a_healthy_card_counts_is_none(fake_nvml: Fake, change: Change) -> None:
    """Its own power limit, a moment, idleness, the voltage limit, a figure that is no time."""
    assert busy(watched(fake_nvml, during=change), fake_nvml) == []


def refused(fake: Fake) -> None:
    """A card that has no counters."""
    for policy in range(12):
        fake.fail("nvmlDeviceGetViolationStatus", policy, code=3)
    for number in (269, 270, 271):
        fake.fail(f"field/{number}", code=2)


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0x8, "hw_slowdown"),
        (0x20, "sw_thermal_slowdown"),
        (0x40, "hw_thermal_slowdown"),
        (0x80, "hw_power_brake_slowdown"),
    ],
)
def test_without_counters_samples_show_a_slowdown(fake_nvml: Fake, bit: int, name: str) -> None:
    def slow(fake: Fake) -> None:
        fake.say("nvmlDeviceGetCurrentClocksThrottleReasons", value=bit)

    (text,) = busy(watched(fake_nvml, before=refused, during=slow), fake_nvml)
    assert text.startswith(f"GPU 0 was slowed down: {name} in ")


def test_a_card_at_its_own_power_limit_is_as_it_is_sold(fake_nvml: Fake) -> None:
    """A 4090 ends a prompt at 450 of 450 W."""

    def at_limit(fake: Fake) -> None:
        fake.say("nvmlDeviceGetCurrentClocksThrottleReasons", value=0x4)
        fake.say("nvmlDeviceGetClockInfo", 1, value=1500)
        violated(0, 1.5)(fake)

    found = findings(watched(fake_nvml, during=at_limit, at="pp"), fake_nvml)
    assert [(one.weight, one.text) for one in found] == [
        ("note", "GPU 0 worked at its own power limit of 700 W")
    ]


@pytest.mark.parametrize(
    "name", ["nvmlDeviceGetPowerManagementLimit", "nvmlDeviceGetEnforcedPowerLimit"]
)
def test_a_power_limit_below_the_default_is_a_cap(fake_nvml: Fake, name: str) -> None:
    seen = watched(fake_nvml, before=lambda fake: fake.say(name, value=350000))
    (finding,) = findings(seen, fake_nvml)
    assert finding.text == "the power limit of GPU 0 is 350 W, below its default of 700 W"
    assert finding.standing and "sudo nvidia-smi -i 0000:01:00.0 -pl 700" in finding.next


def test_a_laptop_s_limit_counts_as_it_is_under_load(fake_nvml: Fake) -> None:
    name = "nvmlDeviceGetEnforcedPowerLimit"
    seen = watched(
        fake_nvml,
        before=lambda fake: fake.say(name, value=35000),
        during=lambda fake: fake.say(name, value=700000),
        after=lambda fake: fake.say(name, value=35000),
    )
    assert seen.power_limit_w == 700 and findings(seen, fake_nvml) == []


def test_clocks_that_are_held_down_are_named(fake_nvml: Fake) -> None:
    def set_down(fake: Fake) -> None:
        fake.say("nvmlDeviceGetApplicationsClock", 1, value=1200)

    assert busy(watched(fake_nvml, before=set_down), fake_nvml) == [
        "the application clock of GPU 0 is set to 1200 MHz, below its 1980"
    ]
    fake_nvml.say("nvmlDeviceGetApplicationsClock", 1, value=1980)

    def locked(fake: Fake) -> None:
        fake.say("nvmlDeviceGetClockInfo", 1, value=1410)

    (text,) = busy(watched(fake_nvml, during=locked, at="pp"), fake_nvml)
    assert text == (
        "the SM clock of GPU 0 was 1410 of 1980 MHz under load, and NVML gives no reason: it is "
        "locked"
    )

    def slow_memory(fake: Fake) -> None:
        fake.say("nvmlDeviceGetClockInfo", 2, value=1593)

    assert busy(watched(fake_nvml, during=slow_memory, at="pp"), fake_nvml) == [
        "the memory clock of GPU 0 was 1593 of 3201 MHz under load"
    ]


def test_a_geforce_below_the_top_of_its_table_is_at_its_clock(fake_nvml: Fake) -> None:
    """It tells no application clocks, and works below the highest clocks that it lists."""

    def geforce(fake: Fake) -> None:
        for name in ("nvmlDeviceGetApplicationsClock", "nvmlDeviceGetDefaultApplicationsClock"):
            fake.fail(name, 1, code=3)
        fake.say("nvmlDeviceGetMaxClockInfo", 1, value=3105)
        fake.say("nvmlDeviceGetMaxClockInfo", 2, value=10501)

    def boost(fake: Fake) -> None:
        fake.say("nvmlDeviceGetClockInfo", 1, value=2745)
        fake.say("nvmlDeviceGetClockInfo", 2, value=10251)

    assert findings(watched(fake_nvml, before=geforce, during=boost, at="pp"), fake_nvml) == []


def test_a_narrow_link_is_a_warning_by_what_it_is_under_load(fake_nvml: Fake) -> None:
    idle = watched(
        fake_nvml,
        before=lambda fake: fake.say("nvmlDeviceGetCurrPcieLinkGeneration", value=1),
        during=lambda fake: fake.say("nvmlDeviceGetCurrPcieLinkGeneration", value=5),
        at="pp",
    )
    assert findings(idle, fake_nvml) == [], "a link is slow while the card is idle"
    narrow = watched(
        fake_nvml, before=lambda fake: fake.say("nvmlDeviceGetCurrPcieLinkWidth", value=4)
    )
    (finding,) = findings(narrow, fake_nvml)
    assert finding.weight == "warn" and "x4 of x16" in finding.text


# -- spread ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pp", "tg", "text"),
    [
        (0.049, 0.019, ""),
        (0.051, 0.0, "pp128 differs by 5.1% between repetitions, more than 5%"),
        (0.0, 0.021, "tg128 differs by 2.1% between repetitions, more than 2%"),
    ],
)
def test_an_unquiet_spread_is_busy(fake_nvml: Fake, pp: float, tg: float, text: str) -> None:
    seen = watched(fake_nvml)
    rates = [replace(QUIET, stdev_ts=share * QUIET.median_ts) for share in (pp, tg)]
    assert [one.text for one in findings(seen, fake_nvml, *rates)] == ([text] if text else [])


# -- what is not told ------------------------------------------------------------------------------


def test_a_card_that_tells_nothing_is_judged_by_nothing(fake_nvml: Fake) -> None:
    nvml = Nvml()
    gpus = nvml.gpus()
    fake_nvml.fail("*", code=3)
    watch = Watch(nvml, gpus, sleep=lambda _: None)
    sampler = Sampler(nvml, WORKER, gpus, interval_s=60)
    sampler.start()
    for mark in MARKS:
        sampler.mark(mark)
    (seen,) = watch.ended(sampler.stop())
    assert judged(Benchmark(QUIET, QUIET, conditions=(seen,)), gpus).findings == ()
    assert (seen.held_mib, seen.sm_clock_mhz, seen.power_limit_w) == (None, None, None)


def test_a_driver_before_510_lists_processes_by_the_second_form(fake_nvml: Fake) -> None:
    """pynvml's word for a missing function is no NVMLError: the sampler died of it."""
    for kind in ("Compute", "Graphics", "MPSCompute"):
        fake_nvml.missing(f"nvmlDeviceGet{kind}RunningProcesses")
    fake_nvml.missing("nvmlDeviceGetMemoryInfo_v2")
    nvml = Nvml()
    moment = nvml.moment(nvml.gpus()[0])
    assert moment.processes is None and moment.used_mib == moment.total_used_mib
    assert at_rest(nvml, nvml.gpus()) is False, "615 MiB that are told as in use"


def test_at_rest_sees_work_memory_and_processes(fake_nvml: Fake) -> None:
    nvml = Nvml()
    gpus = nvml.gpus()
    assert at_rest(nvml, gpus)
    fake_nvml.processes("Compute", (1, 10))
    assert not at_rest(nvml, gpus)
    fake_nvml.processes("Compute")
    fake_nvml.memory(200)
    assert not at_rest(nvml, gpus)
