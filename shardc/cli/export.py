"""`shardc export`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardc.cli.console import QuietOption, configure, echo, files_of, may_write, not_an_input, tell
from shardc.diagnostics import Diagnostic

if TYPE_CHECKING:
    from shardc.plan import Plan


class Form(StrEnum):
    """What a plan can be written as."""

    TORCHREC = "torchrec"
    HUGECTR = "hugectr"
    PYTORCH = "pytorch"
    CSV = "csv"


def export(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan that shardc compiled (JSON).")],
    to: Annotated[
        Form,
        typer.Option(
            help="torchrec: the shape of its ShardingPlan. hugectr: the arguments of EmbeddingCollectionConfig.shard."
            " pytorch: device meshes and DTensor placements. csv: a row for each shard."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where the result goes; default stdout."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write a plan in another form: for other frameworks, a spreadsheet or a script.

    What the framework cannot run is refused, with what to allow instead.
    """
    from shardc.files import write_atomic
    from shardc.given_plan import read_given

    text, warnings = _written(read_given(str(plan)), to)
    if not quiet:
        tell(warnings)
    if output is None or str(output) == "-":
        configure(sys.stdout, encoding="utf-8", newline="\n")
        echo(text.removesuffix("\n"))
        return
    if output.exists():
        not_an_input(output, f"{to} form", files_of(plan))
    may_write(output, force=force)
    write_atomic(output, text.encode())


def _written(plan: Plan, form: Form) -> tuple[str, list[Diagnostic]]:
    """The text of a plan in another form, and what to warn of."""
    from shardc.frameworks.hugectr import hugectr_differences, hugectr_shard
    from shardc.frameworks.pytorch import pytorch_placements
    from shardc.plan import canonical_json
    from shardc.render.shards import shards_csv

    match form:
        case Form.TORCHREC:
            return canonical_json(plan.model_dump(mode="json", include={"plan"})["plan"]), []
        case Form.HUGECTR:
            return hugectr_shard(plan), hugectr_differences(plan)
        case Form.PYTORCH:
            return pytorch_placements(plan), []
        case Form.CSV:
            return shards_csv(plan), []
