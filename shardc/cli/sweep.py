"""`shardc sweep`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardc.cli.console import (
    EffortOption,
    ForceOption,
    QuietOption,
    SetOption,
    SpecArgument,
    SpecSeedOption,
    configure,
    echo,
    in_color,
    in_unicode,
    may_draw,
    progress,
    width,
)
from shardc.diagnostics import Diagnostic, DiagnosticError

if TYPE_CHECKING:
    from shardc.sweep import Configuration, Point, Sweep


class Format(StrEnum):
    """How results are shown."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"


def sweep(
    spec: SpecArgument,
    devices: Annotated[
        str | None, typer.Option(metavar="N,N", help="Devices of each host to compare: cluster.devices_per_host.")
    ] = None,
    hosts: Annotated[str | None, typer.Option(metavar="N,N", help="Numbers of hosts to compare.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Hardware profiles to compare; see shardc devices.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="Anything else to compare; with others, every combination."),
    ] = None,
    settings: SetOption = None,
    weak: Annotated[bool, typer.Option("--weak", help="Let the global batch grow with the number of devices.")] = False,
    price: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE=DOLLARS", help="What a device costs an hour (repeatable).")
    ] = None,
    effort: EffortOption = None,
    seed: SpecSeedOption = None,
    format: Annotated[Format, typer.Option(help="How results are shown.")] = Format.TEXT,
    picture: Annotated[Path | None, typer.Option(metavar="SVG", help="Draw the results.")] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> int:
    """Compile a spec for several clusters, and compare step time, throughput, memory and cost.

    No plan is written. Ctrl-C shows what is done so far. The exit code is 1 if nothing fits anywhere.
    """
    from shardc.files import write_atomic
    from shardc.render.sweep import sweep_picture
    from shardc.settings import parse_settings, parse_varied
    from shardc.spec import load_spec
    from shardc.sweep import grid, ranked

    fixed = parse_settings(settings)
    loaded = load_spec(spec, fixed)
    if picture is not None:
        may_draw(picture, loaded, force=force)
    shorthands = (
        ("--device", "cluster.device", device),
        ("--hosts", "cluster.hosts", hosts),
        ("--devices", "cluster.devices_per_host", devices),
    )
    varied = [parse_varied(f"{key}={values}", option) for option, key, values in shorthands if values is not None]
    varied += [parse_varied(text) for text in vary or ()]
    configurations = grid(loaded, varied, weak=weak, fixed=fixed)
    prices = _prices(price or (), configurations)
    points, interrupted = _compile(configurations, effort, seed, quiet)
    found = ranked(loaded.spec.model.name, points, prices, weak=weak, planned=len(configurations))
    if picture is not None and points:
        write_atomic(picture, sweep_picture(found).encode())
    _show(found, format)
    if interrupted:
        return 130
    return 0 if any(point.step_time_ms is not None for point in points) else 1


def _compile(
    configurations: Sequence[Configuration], effort: str | None, seed: int | None, quiet: bool
) -> tuple[list[Point], bool]:
    """What became of configurations, in their order, and whether Ctrl-C ended it."""
    from shardc.sweep import compile_all

    done: dict[int, Point] = {}
    interrupted = False
    with progress(quiet) as advance:
        try:
            for number, point in compile_all(configurations, effort=effort, seed=seed):
                done[number] = point
                advance("sweep", len(done), len(configurations))
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        echo(f"interrupted: {len(done)} of {len(configurations)} configurations are done", sys.stderr)
    return [done[number] for number in sorted(done)], interrupted


def _prices(texts: Sequence[str], configurations: Sequence[Configuration]) -> dict[str, float]:
    """Dollars an hour by the name of a profile.

    Raises:
        DiagnosticError: SH335, exit code 2.
    """
    from difflib import get_close_matches

    known = {name for each in configurations if each.loaded for name in each.loaded.spec.cluster.device_names}
    prices = {}
    for text in texts:
        name, _, amount = text.rpartition("=")
        try:
            prices[name] = float(amount)
        except ValueError:
            prices[name] = -1.0
        if not name or not 0 < prices[name] < float("inf"):
            message = f'--price: expected a device and dollars an hour, found "{text}"'
            raise DiagnosticError(Diagnostic("SH335", message, help="for example --price h100-80gb=2.5"), exit_code=2)
        if name not in known:
            close = get_close_matches(name, sorted(known), n=1)
            fix = f'did you mean "{close[0]}"?' if close else f"there are: {', '.join(sorted(known))}"
            raise DiagnosticError(
                Diagnostic("SH335", f'--price: no configuration has the device "{name}"', help=fix), exit_code=2
            )
    return prices


def _show(found: Sweep, format: Format) -> None:
    from shardc.render.sweep import sweep_csv, sweep_json, sweep_table

    if format is Format.TEXT:
        color, unicode = in_color(sys.stdout), in_unicode(sys.stdout)
        echo(sweep_table(found, width=width(), color=color, unicode=unicode))
        return
    configure(sys.stdout, encoding="utf-8", newline="\n")
    echo(sweep_json(found) if format is Format.JSON else sweep_csv(found))
