"""`shardc train`: the commands that train what shardc ships weights of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shardc.cli.console import QuietOption, SeedOption, echo, progress
from shardc.diagnostics import Diagnostic, DiagnosticError


def policy(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the weights go; in a profile's folder, `policy.safetensors` is used with that profile.",
        ),
    ] = Path("policy.safetensors"),
    profiles: Annotated[
        list[str] | None,
        typer.Option("--profile", metavar="NAME", help="Train on this device (may be repeated); default all shipped."),
    ] = None,
    kind: Annotated[str, typer.Option(metavar="KIND", help="shardc, autoshard or dreamshard.")] = "shardc",
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Training steps.")] = 500,
    seed: SeedOption = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Train the RL policy that places tables.

    500 steps took 24 minutes of one core. Interrupted or killed, the same command goes on. Under torchrun, ranks train
    together. Beside the weights lie the learning curve (.csv, .svg) and, while training lasts, a checkpoint.
    """
    from shardc.hardware import hardware_names
    from shardc.learn.train_policy import kinds, require_new, train_policy

    if kind not in kinds():
        message = f'there is no policy of the kind "{kind}"'
        raise DiagnosticError(Diagnostic("SH902", message, help=f"kinds: {', '.join(kinds())}"), exit_code=2)
    if not force:
        require_new(output)
    with progress(quiet) as advance:
        try:
            outcome = train_policy(
                output,
                profiles=profiles or hardware_names(),
                steps=steps,
                seed=seed,
                kind=kind,
                progress=lambda done, total, note: advance("train", done, total, note),
            )
        except KeyboardInterrupt:
            if not quiet:
                echo("interrupted: the same command goes on where this one stopped", sys.stderr)
            raise
    if not quiet and outcome is not None:
        for key, text in outcome.items():
            echo(f"{key}: {text}")
        echo(f"weights written to {output}; the learning curve lies beside them")
