"""`shardc train`: the commands that train what shardc ships weights of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardc.cli.console import QuietOption, SeedOption, echo, progress


def policy(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where the weights go; default shardc's own.")
    ] = None,
    profiles: Annotated[
        list[str] | None,
        typer.Option("--profile", metavar="NAME", help="Train on this device (may be repeated); default all shipped."),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Training steps.")] = 600,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Train the RL policy that places tables."""
    from shardc.hardware import hardware_names
    from shardc.learn.train_policy import train_policy
    from shardc.pipeline import POLICY

    target = output or POLICY
    with progress(quiet) as advance:

        def show(done: int, total: int, ratio: float) -> None:
            advance("train", done, total, f"{ratio:.3f} of cost-greedy's step time")

        outcome = train_policy(target, profiles=profiles or hardware_names(), steps=steps, seed=seed, progress=show)
    if not quiet:
        for key, text in outcome.items():
            echo(f"{key}: {text}")
        echo(f"weights written to {target}")
