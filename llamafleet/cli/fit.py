"""The command `llamafleet fit`: what of a model fits a GPU, and what to reduce."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click

from llamafleet.cli.errors import BadInput
from llamafleet.cli.plan import inventory_option
from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.onhost.verify.synth import ModelError
from llamafleet.protocol.fit import (
    MEASURED,
    MIB,
    Gpu,
    Room,
    Use,
    base,
    by_header,
    needs,
    over,
    parts,
    usable,
)
from llamafleet.protocol.offer import Row, Told, Wish, offer, wished
from llamafleet.protocol.serve import KvType, Placement, ServeConfig
from llamafleet.protocol.shape import Shape
from llamafleet.tables.gpu_memory import memory, memory_named
from llamafleet.tables.profiles import profile_of
from llamafleet.terminal import masked_data, printable

MOST_MIB = 1 << 24
MOST_CTX = 1 << 24
SMALLEST_CTX = 256
MOST_PARALLEL = 256
"""LLAMA_MAX_SEQ, src/llama-cparams.h."""


@click.command()
@click.argument("model", metavar="MODEL.gguf", type=click.Path(path_type=Path))
@click.option("--gpu", "names", multiple=True, metavar="NAME", help="As rtx4090; may be repeated.")
@click.option(
    *("--vram", "vram"),
    type=click.IntRange(1, MOST_MIB),
    multiple=True,
    metavar="MIB",
    help="Free memory of a GPU; may be repeated.",
)
@click.option(
    "--host", metavar="HOST", help="A host of the inventory, which has MODEL and a build."
)
@click.option(
    "--ctx",
    type=click.IntRange(SMALLEST_CTX, MOST_CTX),
    metavar="TOKENS",
    help="Context of each request.  [default: the longest that fits]",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, MOST_PARALLEL),
    default=1,
    show_default=True,
    help="Requests that are computed at once.",
)
@click.option("--kv", type=click.Choice(get_args(KvType)), help="[default: the truest that fits]")
@click.option(
    "--layers",
    type=click.IntRange(1, 10000),
    help="n_gpu_layers, the output among them.  [default: all]",
)
@click.option(
    "--reserve",
    type=click.IntRange(0, MOST_MIB),
    default=ServeConfig.reserve_mib,
    show_default=True,
    metavar="MIB",
    help="Left free on each GPU.",
)
@inventory_option
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@click.pass_context
def fit(
    context: click.Context,
    /,
    *,
    model: Path,
    names: tuple[str, ...],
    vram: tuple[int, ...],
    host: str | None,
    ctx: int | None,
    parallel: int,
    kv: KvType | None,
    layers: int | None,
    reserve: int,
    inventory: Path,
    as_json: bool,
) -> None:
    """Tell with which n_gpu_layers, n_ctx and kv_type a model fits beside a reserve.

    Only the header of MODEL is read; of a split one name the first file. Without --host nothing
    else is needed: no GPU, no build. On a HOST its build counts, for its own GPUs as they are now;
    MODEL is a path there. Exit code 0: all that was asked for fits; 1: it does not; 2: bad input.
    """
    wish, use = Wish(ctx, kv, layers), Use(parallel)
    if sum(map(bool, (names, vram, host))) != 1:
        raise BadInput("expected one of --gpu, --vram and --host; next: --gpu rtx4090")
    if host:
        from llamafleet.cli.host import read_fit

        told = read_fit(host, inventory, (str(model), wish, use, reserve))
    else:
        gpus = tuple(map(_gpu, names)) if names else tuple(Gpu(mib) for mib in vram)
        told = _tell(_shape(model), wish, Room(gpus, reserve, use))
    guide = () if host else _guide(told, model)
    if as_json:
        click.echo(json.dumps(masked_data(asdict(told)), indent=1))
    else:
        click.echo("\n".join(map(printable, [*lines(told), *guide])))
    context.exit(0 if told.offer.asked.missing_mib <= 0 or _whole(told, wish) else 1)


def _shape(model: Path) -> Shape:
    """Raises BadInput for what is no whole model."""
    try:
        return shape_of(modelfile.read(model))
    except ModelError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise BadInput(f"{model} can't be read: {error.strerror}; next: ls -l {model}") from error


def _tell(shape: Shape, wish: Wish, room: Room) -> Told:
    if shape.unknown:
        raise BadInput(
            f"the memory of a {shape.architecture} model is not told by its header: found that "
            f"{shape.unknown}; expected keys and values of each layer; next: "
            "llamafleet fit MODEL --host HOST, where a build counts"
        )
    made = offer(wished(shape, wish, room), wish, room, by_header(shape, room))
    return Told(1, shape, room, made, "header")


def _gpu(name: str) -> Gpu:
    """The GPU of that name, as it is when idle. Raises BadInput."""
    rows = memory_named(name)
    if len({row.mib for row in rows}) == 1:
        return Gpu(usable(rows[0].mib), rows[0].name)
    if not rows:
        some = ", ".join(row.name for row in memory() if "4090" in row.name or "H100" in row.name)
        raise BadInput(f"--gpu: found {name!r}; expected a name such as {some}; next: --vram MIB")
    several = ", ".join(f"{row.name} ({row.mib} MiB)" for row in rows)
    raise BadInput(f"--gpu: found {name!r}, which may be {several}; expected one of them")


# -- what is said ----------------------------------------------------------------------------------


def _whole(told: Told, wish: Wish) -> bool:
    """What fits gives up nothing that was named: all layers, and the context that was asked for."""
    best, asked = told.offer.best, told.offer.asked.placement
    return (
        best is not None
        and best.placement.n_gpu_layers == asked.n_gpu_layers
        and (wish.n_ctx is None or best.placement.n_ctx == asked.n_ctx)
    )


def lines(told: Told) -> Iterator[str]:
    shape, room, made = told.shape, told.room, told.offer
    weights = -(-(sum(shape.weights) + shape.output) // MIB)
    trained = f"trained for {shape.context} tokens" if shape.context else "its context not stated"
    yield (
        f"{shape.name or 'a model'} ({shape.architecture}): {shape.layers} layers and the output, "
        f"{weights} MiB of weights for GPUs, {-(-shape.on_cpu // MIB)} on the CPU, {trained}"
    )
    for number, gpu in enumerate(room.gpus):
        name = f": {gpu.name}" if gpu.name else ""
        yield f"GPU {number}{name}: {gpu.free_mib} MiB free, {room.reserve_mib} of them in reserve"
    by = "the build of that host" if told.by == "llama.cpp" else "the header, as llama.cpp does"
    yield f"counted by {by}"
    if told.by == "header" and shape.architecture not in MEASURED:
        yield f"note: not compared with llama.cpp's own account: {shape.architecture} models"
    if told.note:
        yield f"note: {told.note}"
    each = made.asked.placement.n_ctx // max(room.use.parallel, 1)
    if 0 < shape.context < each:
        yield f"note: {each} tokens are more than the {shape.context} that it was trained for"
    if made.asked.missing_mib > 0:
        yield f"does not fit: {_said(made.asked, told)}: {made.asked.missing_mib} MiB too much"
        yield from _each(made.asked, room)
    if made.best is None:
        yield f"nothing of it fits; next: {_advice(told)}"
        return
    yield f"fits: {_said(made.best, told)}"
    yield from _each(made.best, room)
    for row in made.others:
        yield f"fits too: {_said(row, told)}"


def _advice(told: Told) -> str:
    room = told.room
    least = base(told.shape) // MIB + room.reserve_mib
    full = [str(number) for number, gpu in enumerate(room.gpus) if gpu.free_mib < least]
    if 0 < len(full) < len(room.gpus):
        return f"leave GPU {', '.join(full)} out, which has no room for CUDA itself"
    return "a smaller model, a larger GPU, or fewer MiB in reserve"


def _guide(told: Told, model: Path) -> Iterator[str]:
    """How the profile of a model's name does on the same GPUs."""
    row = profile_of(told.shape.name, model.name)
    every = told.shape.layers + 1
    placement = Placement(min(row.n_gpu_layers, every), row.n_ctx)
    missing = max(over(needs(told.shape, placement, told.room), told.room))
    clamped = f", which are all {every}" if row.n_gpu_layers >= every else f" of {every}"
    result = "fits" if missing <= 0 else f"does not fit: {missing} MiB too much"
    yield (
        f"profile {row.name}: n_gpu_layers {row.n_gpu_layers}{clamped}, n_ctx {row.n_ctx}: {result}"
    )


def _said(row: Row, told: Told) -> str:
    placement, every = row.placement, told.shape.layers + 1
    streams = told.room.use.parallel
    each = f" ({streams} requests of {placement.n_ctx // streams})" if streams > 1 else ""
    return (
        f"n_gpu_layers {placement.n_gpu_layers} of {every}, n_ctx {placement.n_ctx}{each}, "
        f"kv_type {placement.kv_type}"
    )


def _each(row: Row, room: Room) -> Iterator[str]:
    for number, (need, missing) in enumerate(zip(row.needed, over(row.needed, room), strict=True)):
        left = f"{missing} too much" if missing > 0 else f"{-missing} left"
        yield f"  GPU {number}: {need.total_mib} MiB ({parts(need)}), {left}"
