"""`shardc profile`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shardc.cli.console import QuietOption, SeedOption, count, echo, progress, tell


def profile(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the profile.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the profile; default the folder's.")] = None,
    sets: Annotated[int, typer.Option(metavar="N", help="Sets of tables to measure, 100 or more.")] = 2000,
    seed: SeedOption = 0,
    collectives: Annotated[
        bool,
        typer.Option("--collectives", help="Measure the links between the ranks of torchrun, for a finished profile."),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Measure this machine's device and learn its cost model."""
    if collectives:
        _collectives(output, quiet)
        return
    from shardc.passes.profile import inexact
    from shardc.profiling import make_profile

    skipped: list[str] = []
    with progress(quiet) as advance:

        def show(stage: str, done: int, total: int, note: str) -> None:
            skipped.extend([note] * bool(note))
            advance(stage, done, total, note)

        try:
            document = make_profile(output, name=name or output.resolve().name, sets=sets, seed=seed, progress=show)
        except KeyboardInterrupt:
            if not quiet:
                echo("interrupted: the same command goes on where this one stopped", sys.stderr)
            raise
    if document is None or quiet:
        return
    measured, errors = document.measured, document.measured.errors
    echo(f"{document.name}: {measured.device}, learned from {count(measured.sets, 'set')} of tables")
    for note in skipped:
        echo(note)
    if measured.disturbed:
        echo(f"{count(measured.disturbed, 'set')} left out: something else slowed the device down meanwhile")
    echo(f"on {count(errors.test_sets, 'held-out set')} (rank correlation {errors.kendall_tau:.3f}):")
    for phase, error in zip(("forward", "backward"), errors.mean_relative_error, strict=True):
        noise = errors.noise and errors.noise[phase == "backward"]
        again = f"   two measurements of one set differ by {noise:5.1%}" if noise is not None else ""
        echo(f"  {phase:<9} mean error {error:5.1%}{again}")
    echo(f"  {'both':<9} mean error {errors.total_relative_error:5.1%}")
    tell(inexact(document.name, measured, None))


def _collectives(folder: Path, quiet: bool) -> None:
    """Measure collectives; the first rank says what was found."""
    from shardc.measure.collectives import measure_collectives

    with progress(quiet) as advance:
        measured = measure_collectives(folder, progress=advance)
    if measured is None or quiet:
        return
    ranks, hosts = count(measured.world_size, "rank"), count(measured.hosts, "host")
    echo(f"collectives of {ranks} on {hosts} ({measured.backend}), mean error on held-out sizes:")
    for collective, fit in measured.fits.items():
        figures = f"{fit.latency_ms:7.3f} ms + bytes / {fit.bandwidth / 1e9:.4g} GB/s"
        echo(f"  {collective.replace('_', '-'):<15}{figures:<34}  {fit.mean_relative_error:5.1%}")
