"""The command `llamafleet image`: what the build stage of Dockerfile.rtx4090 runs."""

from __future__ import annotations

from pathlib import Path

import click

from llamafleet.cli.errors import BadInput
from llamafleet.cli.plan import looked_up, set_option, this_machine, validated

STEPS = ("toolkit", "build", "gather")


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

    The steps are toolkit, build and gather, in this order. Each plans anew, as for a host, and runs
    the jobs of hosts as the user that it is run by.
    """
    from llamafleet.image.make import ImageError, Maker
    from llamafleet.layout import Layout
    from llamafleet.plans.container import capabilities_of, plan_image
    from llamafleet.plans.plan import Problem

    data: dict[str, object] = {"accelerator": backend, "cpu_baseline": baseline or None}
    if backend == "cuda":
        try:
            numbers = list(capabilities_of(architectures))
        except ValueError as error:
            raise BadInput(str(error)) from error
        data |= {"toolkit_method": "wheels", "toolkit_version": cuda or None}
        data |= {"compute_capabilities": numbers} if numbers else {}
    if llama:
        data["llama_version"] = llama
    chosen = looked_up(validated(data | settings))[0]
    layout = Layout.system()
    try:
        plan = plan_image(chosen, this_machine(chosen), layout)
        if isinstance(plan, Problem):
            raise BadInput(str(plan))
        maker = Maker(plan, layout)
        if step == "gather":
            click.echo("\n".join(maker.gather(into)))
            return
        maker.tools()
        click.echo(maker.toolkit() if step == "toolkit" else maker.build())
    except (ImageError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
