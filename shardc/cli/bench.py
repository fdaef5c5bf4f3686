"""`shardc bench`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardc.cli.console import (
    EffortOption,
    ForceOption,
    SpecSeedOption,
    configure,
    count,
    echo,
    in_color,
    in_unicode,
    may_draw,
    progress,
    tell,
    width,
)
from shardc.diagnostics import Diagnostic, DiagnosticError

if TYPE_CHECKING:
    from shardc.spec import LoadedSpec


class Format(StrEnum):
    """How results are shown."""

    TABLE = "table"
    JSON = "json"


class Cost(StrEnum):
    """What placements are judged by."""

    PROFILE = "profile"
    TORCHREC = "torchrec"


def bench(
    specs: Annotated[list[Path] | None, typer.Argument(metavar="SPEC", help="Spec files (TOML).")] = None,
    suite: Annotated[str | None, typer.Option(metavar="NAME", help="Problems that shardc makes; see --list.")] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A strategy to run (may be repeated); default all. See --list."),
    ] = None,
    problems: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first N problems of the suite.")
    ] = None,
    cost: Annotated[
        Cost | None, typer.Option(help="What placements are judged by, instead of what the spec says.")
    ] = None,
    effort: EffortOption = None,
    seed: SpecSeedOption = None,
    format: Annotated[Format, typer.Option(help="How results are shown.")] = Format.TABLE,
    picture: Annotated[Path | None, typer.Option(metavar="SVG", help="Draw the results.")] = None,
    force: ForceOption = False,
    listing: Annotated[bool, typer.Option("--list", help="List suites and strategies.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the results only: no progress, and no warnings about costs.")
    ] = False,
) -> None:
    """Run placement strategies on the same problems, under the same costs, and compare what they find.

    A strategy that fails on a problem is counted; figures are means over the problems that every strategy placed.
    Ctrl-C ends it with what has been found so far.
    """
    from shardc.bench import STRATEGIES, compare, usable
    from shardc.files import write_atomic
    from shardc.render.bench import comparison_json, comparison_picture, comparison_table
    from shardc.suites import SUITES

    if listing:
        _list()
        return
    if bool(specs) == (suite is not None):
        message = "a suite and a spec together" if specs else "neither a spec nor a suite"
        fix = "give specs, or --suite NAME; --list shows the suites"
        raise DiagnosticError(Diagnostic("SH902", f"{message} to compare strategies on", help=fix), exit_code=2)
    if problems is not None and suite is None:
        raise DiagnosticError(Diagnostic("SH902", "--problems goes with --suite"), exit_code=2)
    if suite is not None:
        _known("suite", suite, SUITES)
    names = list(dict.fromkeys(strategy or ()))
    for name in names:
        _known("strategy", name, STRATEGIES)
    chosen, notes = usable(names)
    if not quiet:
        tell(notes)
    loaded = _of_suite(suite, seed or 0, problems) if suite is not None else _of_files(specs or [])
    loaded = [(name, _with_cost(spec, cost)) for name, spec in loaded]
    if picture is not None:
        may_draw(picture, *(spec for _, spec in loaded), force=force)
    total = len(loaded) * len(chosen)
    with progress(quiet) as advance:

        def show(done: int, following: str) -> None:
            advance("bench", done, total, following)

        title = suite or ", ".join(name for name, _ in loaded)
        found = compare(title, loaded, chosen, seed=seed, effort=effort, progress=show)
        if not found.interrupted:
            show(total, "")
    if found.interrupted:
        what = f"what follows is of {len(found.results)}" if found.results else "there is nothing yet"
        echo(f"interrupted: {what} of {count(len(loaded), 'problem')}", sys.stderr)
        if not found.results:
            raise typer.Exit(130)
    if picture is not None:
        write_atomic(picture, comparison_picture(found).encode())
    if not quiet:
        tell(found.warnings)
    if format is Format.JSON:
        configure(sys.stdout, encoding="utf-8", newline="\n")
        echo(comparison_json(found))
    else:
        echo(comparison_table(found, width=width(), color=in_color(sys.stdout), unicode=in_unicode(sys.stdout)))
    if found.interrupted:
        raise typer.Exit(130)


def _list() -> None:
    from shardc.bench import STRATEGIES
    from shardc.suites import SUITES

    meanings = {name: (make.__doc__ or "").partition("\n")[0] for name, make in SUITES.items()}
    for title, rows in (("suites", meanings), ("strategies", {n: s.meaning for n, s in STRATEGIES.items()})):
        echo(f"{title}:")
        for name, meaning in rows.items():
            echo(f"  {name:<{max(map(len, rows))}}  {meaning}")


def _known(what: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that there is not.

    Raises:
        DiagnosticError: SH902.
    """
    from difflib import get_close_matches

    known = list(names)
    if name not in known:
        close = get_close_matches(name, known, n=1)
        fix = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}"
        raise DiagnosticError(Diagnostic("SH902", f'there is no {what} "{name}"', help=fix), exit_code=2)


def _of_suite(suite: str, seed: int, count: int | None) -> list[tuple[str, LoadedSpec]]:
    from shardc.spec import parse_spec
    from shardc.suites import problems

    return [(spec["model"]["name"], parse_spec(spec)) for spec in problems(suite, seed, count)]


def _of_files(specs: Sequence[Path]) -> list[tuple[str, LoadedSpec]]:
    from shardc.spec import load_spec

    return [(str(path), load_spec(path)) for path in specs]


def _with_cost(loaded: LoadedSpec, cost: Cost | None) -> LoadedSpec:
    """The spec under other costs; TorchRec's have no quantiles."""
    from dataclasses import replace

    if cost is None:
        return loaded
    quantile = None if cost is Cost.TORCHREC else loaded.spec.compile.quantile
    how = loaded.spec.compile.model_copy(update={"cost": str(cost), "quantile": quantile})
    return replace(loaded, spec=loaded.spec.model_copy(update={"compile": how}))
