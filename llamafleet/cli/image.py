"""The command `llamafleet image`: what the build stage of Dockerfile.rtx4090 runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llamafleet.cli.errors import BadInput
from llamafleet.cli.plan import looked_up, set_option, this_machine, validated

if TYPE_CHECKING:
    from llamafleet.plans.container import ImagePlan

STEPS = ("check", "toolkit", "build", "gather")
ARGUMENTS = {
    "accelerator": "BACKEND",
    "toolkit_version": "CUDA_VERSION",
    "compute_capabilities": "CUDA_ARCHITECTURES",
    "cpu_baseline": "CPU_BASELINE",
    "llama_version": "LLAMA_VERSION",
}
"""Of Dockerfile.rtx4090: who builds an image knows the settings by these names."""


@click.command()
@click.argument("step", type=click.Choice(STEPS))
@click.option("--backend", type=click.Choice(("cuda", "cpu")), default="cuda", show_default=True)
@click.option("--cuda", metavar="13.0", help="CUDA Toolkit, major.minor.")
@click.option("--architectures", default="", metavar="89", help="As of CMake: 89, or 86;89.")
@click.option("--baseline", default="", help="Of the CPU, such as x86-64-v3.")
@click.option("--llama", default="", help="Version of llama-cpp-python; else the usual one.")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/image"),
    show_default=True,
    help="Where `gather` puts what the image gets.",
)
@set_option
def image(
    *,
    step: str,
    backend: str,
    cuda: str | None,
    architectures: str,
    baseline: str,
    llama: str,
    into: Path,
    settings: dict[str, object],
) -> None:
    """Carry out one STEP of the image of Dockerfile.rtx4090, in the container that builds it.

    The steps are check, toolkit, build and gather, in this order. Each plans anew, as for a host;
    check does no more than that. The others run the jobs of hosts as the user that it is run by.
    """
    try:
        _carry_out(step, _data(backend, cuda, architectures, baseline, llama) | settings, into)
    except BadInput as error:
        raise BadInput(_named(str(error))) from error


def _named(text: str) -> str:
    """The same with the names of build arguments."""
    for setting, argument in ARGUMENTS.items():
        text = re.sub(rf"(--set: )?\b{setting}\b", argument, text)
    return text


def _data(
    backend: str, cuda: str | None, architectures: str, baseline: str, llama: str
) -> dict[str, object]:
    """Settings, of arguments. Raises BadInput."""
    from llamafleet.plans.container import capabilities_of

    data: dict[str, object] = {"accelerator": backend, "cpu_baseline": baseline or None}
    if backend == "cuda":
        try:
            numbers = list(capabilities_of(architectures))
        except ValueError as error:
            raise BadInput(str(error)) from error
        data |= {"toolkit_method": "wheels", "toolkit_version": cuda or None}
        data |= {"compute_capabilities": numbers} if numbers else {}
    return data | ({"llama_version": llama} if llama else {})


def _carry_out(step: str, data: dict[str, object], into: Path) -> None:
    """Raises BadInput, ClickException."""
    from llamafleet.image.make import ImageError, Maker
    from llamafleet.layout import Layout
    from llamafleet.plans.container import plan_image
    from llamafleet.plans.plan import Problem

    chosen = looked_up(validated(data))[0]
    layout = Layout.system()
    try:
        plan = plan_image(chosen, this_machine(chosen), layout)
        if isinstance(plan, Problem):
            raise BadInput(str(plan))
        maker = Maker(plan, layout)
        if step == "check":
            click.echo(_said(plan))
            return
        if step == "gather":
            click.echo("\n".join(maker.gather(into)))
            return
        maker.tools()
        click.echo(maker.toolkit() if step == "toolkit" else maker.build())
    except (ImageError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _said(plan: ImagePlan) -> str:
    """What will be built."""
    inputs = plan.build.inputs
    code = ", ".join(f"sm_{one.replace('.', '')}" for one in inputs.compute_capabilities)
    toolkit = f"CUDA {plan.toolkit.version} for {code}" if plan.toolkit else "the CPU"
    return f"checked: llama-cpp-python {inputs.llama_version} with {toolkit}"
