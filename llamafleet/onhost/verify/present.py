"""Which GPUs a verification judges: all that this host has, or those that the settings choose.

NVML, the PCI bus and the plan each name GPUs. One that any of them names and NVML does not give is
judged too: as missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamafleet.onhost.cards import Card, closed
from llamafleet.onhost.verify.gpu import Gpu
from llamafleet.protocol.verify import INSTANCE, VerifyConfig


def is_instance(gpu: Gpu) -> bool:
    return gpu.uuid.startswith(INSTANCE)


@dataclass(frozen=True)
class Missing:
    """A GPU that should be there, and that NVML does not give."""

    gpu: Gpu
    """As far as it is known; index -1."""
    found: str
    advice: str
    planned: bool = False
    """The plan names it: it stays among the verification's inputs."""


@dataclass(frozen=True)
class Present:
    """What is there, by what the settings choose."""

    gpus: tuple[Gpu, ...] = ()
    """Those that NVML gives, in its order."""
    missing: tuple[Missing, ...] = ()
    left_out: tuple[str, ...] = ()
    """The others, by name and UUID or address."""

    def identities(self, planned: Sequence[str]) -> tuple[str, ...]:
        """As a verification's inputs name them: what is there, and what the plan misses."""
        now = [as_planned(gpu, planned) for gpu in self.gpus]
        gone = {missing.gpu.identity for missing in self.missing if missing.planned}
        if not gone:
            return tuple(now)
        # In the plan's order, so that the result is one of that very plan.
        known = [name for name in planned if name in gone or name in now]
        return (*known, *(name for name in now if name not in known))


def as_planned(gpu: Gpu, planned: Sequence[str]) -> str:
    """Its identity. An instance is called by the plan's name: nvidia-smi, which the plan asks, and
    NVML each put its name together."""
    known = {name.rpartition(" ")[2]: name for name in planned if is_instance(gpu)}
    return known.get(gpu.uuid, gpu.identity)


def chosen(gpus: Sequence[Gpu], config: VerifyConfig) -> list[Gpu]:
    """Those that the settings choose; all where they name none."""
    return [gpu for gpu in gpus if not config.gpus or gpu.uuid in config.gpus]


def present(
    listed: Sequence[Gpu],
    cards: Sequence[Card],
    config: VerifyConfig,
    lost: Mapping[int, str] | None = None,
) -> Present:
    """`listed`: by NVML, which counts the `lost` too and says why it does not give them."""
    words = "; ".join(f"NVML, of GPU {index}: {text}" for index, text in (lost or {}).items())
    missing = _planned(listed, cards, config, words)
    named = {one.gpu.bus_id for one in missing} | {gpu.bus_id for gpu in listed}
    unseen = [card for card in cards if card.bus_id not in named]
    # Those that the bus or the plan names are among the lost.
    uncounted = [_uncounted(*one) for one in (lost or {}).items()][len(missing) + len(unseen) :]
    left_out = [gpu.identity for gpu in listed if gpu not in chosen(listed, config)]
    if config.gpus:
        left_out += [_called(card) for card in unseen] + [one.gpu.name for one in uncounted]
    else:
        missing += [*(_unseen(card, words) for card in unseen), *uncounted]
    return Present(tuple(chosen(listed, config)), tuple(missing), tuple(left_out))


def _planned(
    listed: Sequence[Gpu], cards: Sequence[Card], config: VerifyConfig, words: str
) -> list[Missing]:
    """GPUs that the settings or the plan name, and that are not there."""
    names = {name.rpartition(" ")[2]: name.rpartition(" ")[0] for name in config.inputs.gpus}
    wanted = config.gpus or tuple(names)
    there = {gpu.uuid for gpu in listed}
    by_uuid = {card.uuid: card for card in cards if card.uuid}
    result = []
    for uuid in wanted:
        if uuid in there:
            continue
        card = by_uuid.get(uuid)
        gpu = _gpu(names.get(uuid) or (card.name if card else ""), uuid, card)
        parts = [one.uuid for one in listed if card and one.bus_id == card.bus_id]
        if parts:
            found = f"it is divided into {', '.join(parts)} now"
            result.append(Missing(gpu, found, DEPLOY, planned=uuid in names))
            continue
        found, advice = _why(card, words) if card else (_and("no such GPU", words), LOOK)
        result.append(Missing(gpu, found, advice, planned=uuid in names))
    return result


DEPLOY = "on the controller, pyinfra -y inventory deploy.py, which plans for what is there"
LOOK = (
    "nvidia-smi -L; sudo dmesg | grep -iE 'nvrm|xid'; a GPU that was taken out: on the controller, "
    "pyinfra -y inventory deploy.py"
)


def _unseen(card: Card, words: str) -> Missing:
    found, advice = _why(card, words)
    return Missing(_gpu(card.name, card.uuid, card), found, advice)


def _uncounted(index: int, text: str) -> Missing:
    gpu = _gpu(f"GPU {index} of NVML", "", None)
    return Missing(gpu, f"NVML counts it and does not give it: {text}", LOOK)


def _why(card: Card, words: str) -> tuple[str, str]:
    """Why NVML does not list a card of the bus, and what to do."""
    if card.excluded:
        advice = "take it out of NVreg_ExcludedGpus, or name the others in the setting gpus"
        return "the module nvidia was told to leave it alone", advice
    found = "the PCI bus shows it bound to nvidia, and NVML does not list it"
    problem, advice = closed(card) or ("", LOOK)
    return _and(_and(found, problem), words), advice


def _and(found: str, words: str) -> str:
    return f"{found}; {words}" if words else found


def _gpu(name: str, uuid: str, card: Card | None) -> Gpu:
    name = name or "NVIDIA GPU"
    return Gpu(-1, name, uuid, card.bus_id if card else "", compute_capability="", vram_mib=0)


def _called(card: Card) -> str:
    return f"{card.name or 'NVIDIA GPU'} {card.uuid or 'at ' + card.bus_id}"
