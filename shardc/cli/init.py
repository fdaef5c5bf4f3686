"""`shardc init`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardc.cli.console import QuietOption, configure, count, echo, may_write, tell
from shardc.diagnostics import Diagnostic, DiagnosticError, shown

if TYPE_CHECKING:
    from torch import nn

    from shardc.frameworks.planner_inputs import PlannerInputs


def init(
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="PACKAGE.MODULE:FUNCTION",
            help="The function; it takes no arguments and returns the model, or what TorchRec's planner is told: a"
            " tuple of model, Topology, constraints (or None) and batch_size of a rank.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="SPEC", help="Where the spec goes; - for stdout.")
    ] = Path("model.toml"),
    module: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The module with the tables, for a model that has several collections."),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Device of the cluster, as in a spec.")] = None,
    hosts: Annotated[int | None, typer.Option(metavar="N", help="Number of hosts.")] = None,
    devices_per_host: Annotated[int | None, typer.Option(metavar="N", help="Devices of each host.")] = None,
    global_batch: Annotated[
        int | None, typer.Option(metavar="N", help="Samples of a training step, over all devices.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="sgd, rowwise_adagrad, adagrad or adam.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Make a spec of a TorchRec or plain PyTorch model, from the function that builds it.

    This imports and runs that code, from the packages of the working directory: use it with code that you trust. No
    other command of shardc runs code of yours. The model is built on the meta device, where weights take no memory.

    What the model does not say (devices, batch, optimizer, lookups) is assumed, and marked so in the spec, unless the
    options or the planner inputs say it.
    """
    from shardc.draft import draft
    from shardc.files import write_atomic
    from shardc.frameworks.builder import build
    from shardc.frameworks.model import find_collection
    from shardc.frameworks.planner_inputs import planner_facts
    from shardc.render.spec import spec_toml
    from shardc.spec import parse_spec

    given = {
        "device": device,
        "hosts": hosts,
        "devices_per_host": devices_per_host,
        "global_batch": global_batch,
        "optimizer": optimizer,
    }
    _require_valid(given, output)
    may_write(output, force=force)
    target = output.absolute()  # the code may change the working directory
    model, inputs = _model_of(build(source), source)
    collection = find_collection(model, module)
    planned = planner_facts(inputs, collection) if inputs else None
    drafted = draft(collection, type(model).__name__, source, given, planned, base=os.path.dirname(output))
    spec = parse_spec(drafted.content).spec
    text = spec_toml(spec, drafted.about, drafted.notes)
    if planned and not quiet:
        tell(planned.warnings)
    if str(output) == "-":
        configure(sys.stdout, encoding="utf-8", newline="\n")
        echo(text.removesuffix("\n"))
        return
    write_atomic(target, text.encode())
    if not quiet:
        where = f"in {spec.model.module}" if spec.model.module else "in the model itself"
        echo(f"{count(len(spec.table), 'table')} of {spec.model.name}, {where}")
        next_step = f'see its lines with "assumed", then: shardc compile {shlex.quote(str(output))}'
        echo(shown(f"spec written to {output}; {next_step}"))


def _require_valid(given: dict[str, Any], output: Path) -> None:
    """Refuse options that no spec can have before any code runs."""
    from shardc.hardware import load_hardware
    from shardc.spec import parse_spec

    model = {"name": "any", "module": "", "global_batch": 1}
    cluster = {"device": "any", "devices_per_host": 1}
    for section, names in ((model, ("global_batch", "optimizer")), (cluster, ("device", "hosts", "devices_per_host"))):
        section.update({name: given[name] for name in names if given[name] is not None})
    table = {"name": "any", "rows": 1, "dim": 4, "pooling": 1}
    try:
        parse_spec({"format": 1, "model": model, "cluster": cluster, "table": [table]})
        if given["device"] is not None:
            load_hardware(given["device"], base=os.path.dirname(output))
    except DiagnosticError as error:
        raise DiagnosticError(*error.diagnostics, exit_code=2) from None


def _model_of(returned: Any, source: str) -> tuple[nn.Module, PlannerInputs | None]:
    from torch import nn

    from shardc.frameworks.planner_inputs import as_planner_inputs

    if isinstance(returned, nn.Module):
        return returned, None
    if inputs := as_planner_inputs(returned):
        return inputs.model, inputs
    found = f"({', '.join(type(r).__name__ for r in returned)})" if isinstance(returned, tuple) else None
    message = f"{source} returned {found or 'a ' + type(returned).__name__}, not a model"
    advice = "return an nn.Module, or the tuple (model, Topology, constraints or None, batch_size)"
    raise DiagnosticError(Diagnostic("SH701", message, help=advice), exit_code=2)
