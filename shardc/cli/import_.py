"""`shardc import`: the commands that make a spec of something else."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardc.cli.console import QuietOption, configure, count, echo, may_write, not_an_input, progress
from shardc.diagnostics import DiagnosticError, shown

if TYPE_CHECKING:
    from shardc.measure.index_file import RecordedBatch
    from shardc.spec import Spec

_ABOUT = """\
{tables} of {file}, one recorded batch of {batch:,} samples{left_out}.
rows: the largest index of the batch + 1, a lower bound. pooling: mean lookups a sample.
access: shares of the touched rows by how often the batch looks them up.
What the file does not say, and you should: module, optimizer, dim, and [cluster].
"""


def dlrm(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of dlrm_datasets, .pt or .pt.gz.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="SPEC",
            help="Where the spec goes; default FILE's name with .toml, in this folder, - for stdout.",
        ),
    ] = None,
    dim: Annotated[int, typer.Option(metavar="N", help="Elements of an embedding vector; FILE does not say.")] = 128,
    device: Annotated[str, typer.Option(metavar="NAME", help="Device of the cluster, as in a spec.")] = "h100-80gb",
    hosts: Annotated[int, typer.Option(metavar="N", help="Number of hosts.")] = 1,
    devices_per_host: Annotated[int, typer.Option(metavar="N", help="Devices of each host.")] = 8,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Make a spec of the lookups recorded in a file of the public access dataset.

    Its tables go to a CSV file beside it, SPEC's name with .tables.csv; on stdout the spec holds them itself. Neither
    needs FILE any more: the rows, pooling and access distribution of each table are written out.
    """
    from shardc.hardware import load_hardware
    from shardc.measure.index_file import read_batch
    from shardc.render.spec import spec_toml

    name = file.name.removesuffix(".gz").removesuffix(".pt") or "dlrm"
    target = Path(f"{name}.toml") if output is None else output
    head = {
        "format": 1,
        "cluster": {"device": device, "hosts": hosts, "devices_per_host": devices_per_host},
        "defaults": {"dim": dim},
    }
    # What can be refused at once is not refused after minutes of reading.
    try:
        _spec(name, 1, head, [{"name": "any", "rows": 1, "pooling": 1}])
        load_hardware(device, base=os.path.dirname(target))
    except DiagnosticError as error:
        raise DiagnosticError(*error.diagnostics, exit_code=2) from None
    for each in (target, _table_file(target)):
        not_an_input(each, "spec" if each is target else "table file", {str(file): "recording"})
    may_write(target, _table_file(target), force=force)
    with progress(quiet) as advance:
        recorded = read_batch(str(file), advance)
    tables = _tables(recorded)
    spec = _spec(name, recorded.batch, head, tables)
    missing = len(recorded.tables) - len(tables)
    about = _ABOUT.format(
        tables=count(len(tables), "table"),
        file=file.name,
        batch=recorded.batch,
        left_out=f"; left out: {count(missing, 'table')} without lookups" if missing else "",
    )
    if str(target) == "-":
        configure(sys.stdout, encoding="utf-8", newline="\n")
        echo(spec_toml(spec, about).removesuffix("\n"))
        return
    _write(spec, about, target)
    if not quiet:
        echo(about.partition("\n")[0])
        echo(shown(f"spec written to {target}, its tables to {_table_file(target)}"))


def _tables(recorded: RecordedBatch) -> list[dict[str, Any]]:
    """The tables of a spec: those that have lookups, named by their position in the file."""
    digits = len(str(len(recorded.tables) - 1))
    return [
        {
            "name": f"table_{position:0{digits}}",
            "rows": table.rows,
            "pooling": _rounded(table.lookups / recorded.batch),
            "access": {"bins": list(map(_rounded, table.bins.shares))},
        }
        for position, table in enumerate(recorded.tables)
        if table
    ]


def _rounded(value: float) -> float:
    """Four digits: the shares of 17 bins then sum to 1 within 1e-4, and rare but hot rows keep theirs."""
    return float(f"{value:.4g}")


def _spec(name: str, batch: int, head: dict[str, Any], tables: list[dict[str, Any]]) -> Spec:
    from shardc.spec import parse_spec

    model = {"name": name, "module": "sparse_arch.embedding_bag_collection", "global_batch": batch}
    return parse_spec({**head, "model": model, "table": tables}).spec


def _write(spec: Spec, about: str, target: Path) -> None:
    from shardc.files import write_atomic
    from shardc.render.spec import spec_toml, tables_csv
    from shardc.spec import TablesSpec

    table_file = _table_file(target)
    short = spec.model_copy(update={"table": (), "tables": TablesSpec(file=table_file.name)})
    write_atomic(table_file, tables_csv(spec.table).encode())
    write_atomic(target, spec_toml(short, about).encode())


def _table_file(target: Path) -> Path:
    return target.parent / f"{target.stem}.tables.csv"
