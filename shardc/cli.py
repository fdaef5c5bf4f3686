"""The command line: data on stdout, everything else on stderr.

Exit codes: 0 fine, 1 findings (an invalid spec, an infeasible model, a failed check), 2 could not run, 130 interrupted.
Heavy modules are imported inside the commands: `shardc --help` and `shardc validate` answer at once.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Protocol, TextIO, cast

import typer

from shardc import __version__
from shardc.diagnostics import Diagnostic, DiagnosticError, render

if TYPE_CHECKING:
    from shardc.hardware import Hardware
    from shardc.passes.profile import Measure
    from shardc.pipeline import Compiled
    from shardc.plan import Plan
    from shardc.spec import LoadedSpec

_EXTRAS = {"torch", "fbgemm_gpu", "pyarrow"}
"""Modules that only measuring and training need."""

_MIN_WIDTH, _MAX_WIDTH = 72, 120
_MAX_SEED = 2**32 - 1
# typer exports errors of wrong usage, but not the class that they have in common.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train = typer.Typer(rich_markup_mode=None)
app.add_typer(train, name="train")


class Effort(StrEnum):
    """How long to search."""

    FAST = "fast"
    BALANCED = "balanced"
    THOROUGH = "thorough"


class Document(StrEnum):
    """A document that has a JSON Schema."""

    SPEC = "spec"
    PLAN = "plan"


SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="A spec file (TOML).")]
SpecArguments = Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Spec files (TOML).")]
SeedOption = Annotated[int, typer.Option(metavar="N", min=0, max=_MAX_SEED, help="Seed of every random choice.")]
MeasureOption = Annotated[
    bool, typer.Option("--measure", help="Measure the spec's own shards on this machine's device first.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what is wrong.")]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    Args:
        arguments: of the command line; None for the process's own.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started shardc
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        _configure(getattr(sys, name), errors="backslashreplace")
    try:
        sys.exit(app(args=arguments, prog_name="shardc", standalone_mode=False))
    except DiagnosticError as error:
        failure = error
    except ModuleNotFoundError as error:
        failure = _missing_extra(error) if (error.name or "").partition(".")[0] in _EXTRAS else _internal(error)
    except _UsageError as error:
        failure = _wrong_usage(error)
    except Exception as error:
        failure = _internal(error)
    _tell(failure.diagnostics)
    sys.exit(failure.exit_code)


def _version(given: bool) -> None:
    if given:
        _print(f"shardc {__version__}")
        raise typer.Exit


@app.callback()
def _shardc(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Print the version."),
    ] = False,
) -> None:
    """Compile a recommender model's embedding tables and a cluster into a sharding plan that TorchRec runs."""


@app.command(
    epilog="\b\nExample:\n  shardc compile model.toml\n  shardc compile model.toml -o - | jq .score.step_time_ms"
)
def compile(
    spec: SpecArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PLAN",
            help="Where the plan goes; default SPEC's name with .plan.json, - for stdout.",
        ),
    ] = None,
    effort: Annotated[Effort | None, typer.Option(help="How long to search, instead of what the spec says.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=_MAX_SEED, help="Seed of every random choice, instead of the spec's."),
    ] = None,
    measure: MeasureOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compile a spec to a sharding plan."""
    from shardc.files import write_atomic
    from shardc.pipeline import run
    from shardc.plan import default_plan_path, plan_bytes
    from shardc.spec import load_spec

    loaded = load_spec(spec)
    target = str(output) if output else default_plan_path(spec)
    if target != "-" and _is_same_file(target, spec):
        raise DiagnosticError(
            Diagnostic("SH902", f"{target} is the spec itself: the plan would replace it"), exit_code=2
        )
    previous = None if target == "-" else _existing_plan(target)
    with _measuring(loaded, measure, quiet) as measuring:
        compiled = run(loaded, seed=seed, effort=effort, measure=measuring)
    content = plan_bytes(compiled.plan)
    if target == "-":
        _configure(sys.stdout, encoding="utf-8", newline="\n")
        _print(content.decode().removesuffix("\n"))
    else:
        write_atomic(target, content)
    if quiet:
        return
    _tell(compiled.warnings)
    _summarise(compiled, previous, sys.stderr if target == "-" else sys.stdout)
    if target != "-":
        _print(f"\nplan written to {target}")


@app.command(epilog="\b\nExample:\n  shardc validate examples/*.toml")
def validate(specs: SpecArguments, quiet: QuietOption = False) -> int:
    """Say whether specs are valid, and everything that is wrong where they are not."""
    from shardc.spec import load_spec

    code = 0
    for spec in specs:
        try:
            loaded = load_spec(spec)
        except DiagnosticError as error:
            _report(error)
            code = max(code, error.exit_code)
        else:
            if not quiet:
                _print(
                    f"ok {spec}: {_count(len(loaded.tables), 'table')}, {_count(loaded.spec.cluster.devices, 'device')}"
                )
    return code


@app.command(epilog="\b\nExample:\n  shardc check examples/*.toml")
def check(specs: SpecArguments, measure: MeasureOption = False, quiet: QuietOption = False) -> int:
    """Check committed plans against their specs, hardware profiles and budgets.

    Compiles each spec again, in memory, and exits with 1 if its plan is missing, no longer fits the spec, is over the
    budget, or could be better.
    """
    from shardc.check.checks import check as check_plan
    from shardc.spec import load_spec
    from shardc.units import format_ms

    code, failed = 0, 0
    for spec in specs:
        try:
            loaded = load_spec(spec)
            with _measuring(loaded, measure, quiet) as measuring:
                report = check_plan(loaded, measuring)
        except DiagnosticError as error:
            _report(error)
            code, failed = max(code, error.exit_code), failed + 1
            continue
        if report.findings:
            _report(DiagnosticError(*report.findings))
            code, failed = max(code, 1), failed + 1
        elif report.step_time_ms is not None and not quiet:
            gap = "" if report.gap is None else f"  gap {report.gap:.1%}"
            _print(f"ok {spec}  {format_ms(report.step_time_ms)}{gap}")
        if not quiet:
            for note in report.notes:
                _print(f"note: {spec}: {note}")
    if not quiet:
        _print(f"{_count(len(specs), 'spec')} checked, {failed or 'none'} with findings")
    return code


@app.command(epilog="\b\nExample:\n  shardc schema spec > spec.schema.json")
def schema(document: Annotated[Document, typer.Argument(help="Which document.")]) -> None:
    """Print the JSON Schema (draft-07) of the spec or of the plan."""
    import json

    from shardc.plan import plan_schema
    from shardc.spec import spec_schema

    _print(json.dumps(spec_schema() if document is Document.SPEC else plan_schema(), indent=2))


@app.command(
    epilog='\b\nExample:\n  shardc profile -o profiles/my-gpu    # then, in a spec: device = "profiles/my-gpu"'
)
def profile(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the profile.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the profile; default the folder's.")] = None,
    sets: Annotated[int, typer.Option(metavar="N", min=1, help="Sets of tables to measure.")] = 2000,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Measure this machine's device and learn its cost model."""
    from shardc.profiling import make_profile

    with _progress(quiet) as advance:
        try:
            document = make_profile(output, name=name or output.resolve().name, sets=sets, seed=seed, progress=advance)
        except KeyboardInterrupt:
            if not quiet:
                _print("interrupted: the same command goes on where this one stopped", sys.stderr)
            raise
    if quiet:
        return
    measured, errors = document.measured, document.measured.errors
    _print(f"{document.name}: {measured.device}, learned from {_count(measured.sets, 'set')} of tables")
    _print(f"on {_count(errors.test_sets, 'held-out set')} (rank correlation {errors.kendall_tau:.3f}):")
    for phase, error, noise in zip(("forward", "backward"), errors.mean_relative_error, errors.noise, strict=True):
        _print(f"  {phase:<9} mean error {error:5.1%}   two measurements of one set differ by {noise:5.1%}")


@train.callback()
def _train() -> None:
    """Train what shardc ships weights of."""


@train.command(
    "policy", epilog="\b\nExample:\n  shardc train policy -o policy.safetensors --profile h100-80gb --steps 500"
)
def train_policy(
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
    from shardc.learn.train_policy import train_policy as train_weights
    from shardc.pipeline import POLICY

    target = output or POLICY
    with _progress(quiet) as advance:

        def show(done: int, total: int, ratio: float) -> None:
            advance("train", done, total, f"{ratio:.3f} of cost-greedy's step time")

        outcome = train_weights(target, profiles=profiles or hardware_names(), steps=steps, seed=seed, progress=show)
    if not quiet:
        for key, text in outcome.items():
            _print(f"{key}: {text}")
        _print(f"weights written to {target}")


@app.command(epilog="\b\nExample:\n  shardc devices")
def devices() -> None:
    """List the hardware profiles that shardc ships."""
    from shardc.hardware import hardware_names, load_hardware

    header = ("name", "costs", "memory", "within a host", "between hosts", "error forward, backward")
    rows = [header, *(_device_row(load_hardware(name)) for name in hardware_names())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _device_row(hardware: Hardware) -> tuple[str, ...]:
    from shardc.units import format_bytes

    forward, backward = hardware.measured.errors.mean_relative_error if hardware.measured else (None, None)
    return (
        hardware.name,
        "measured" if hardware.measured else "data sheet",
        format_bytes(hardware.memory_bytes),
        f"{hardware.intra_host_bandwidth / 1e9:.4g} GB/s",
        f"{hardware.inter_host_bandwidth / 1e9:.4g} GB/s",
        "unknown" if forward is None or backward is None else f"{forward:.1%}, {backward:.1%}",
    )


# --- What went wrong --------------------------------------------------------------------------------------------------


def _missing_extra(error: ModuleNotFoundError) -> DiagnosticError:
    fix = "pip install 'shardc[cpu]', or 'shardc[gpu]' where there is a GPU"
    return DiagnosticError(Diagnostic("SH604", f"{error.name} is not installed", help=fix), exit_code=2)


def _wrong_usage(error: BaseException) -> DiagnosticError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "shardc"
    message = error.format_message()  # type: ignore[attr-defined]
    return DiagnosticError(Diagnostic("SH902", message, help=f"see {command} --help"), exit_code=2)


def _internal(error: Exception) -> DiagnosticError:
    if os.environ.get("SHARDC_DEBUG"):
        traceback.print_exception(error)
    fix = "this is a bug in shardc: please report it with what SHARDC_DEBUG=1 shows"
    return DiagnosticError(Diagnostic("SH901", f"{type(error).__name__}: {error}", help=fix), exit_code=2)


# --- Output -----------------------------------------------------------------------------------------------------------


def _configure(
    stream: TextIO, *, encoding: str | None = None, errors: str | None = None, newline: str | None = None
) -> None:
    cast(io.TextIOWrapper, stream).reconfigure(encoding=encoding, errors=errors, newline=newline)


def _print(text: str, stream: TextIO | None = None) -> None:
    """Print a line, or nothing any more once the reader of a pipe has gone."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _report(error: DiagnosticError) -> None:
    """Show what a check found, which is its result, or why it could not run."""
    _tell(error.diagnostics, sys.stdout if error.exit_code == 1 else sys.stderr)


def _tell(diagnostics: Sequence[Diagnostic], stream: TextIO | None = None) -> None:
    """Show diagnostics, and a blank line after them."""
    stream = stream or sys.stderr
    if diagnostics:
        _print(render(diagnostics, color=_in_color(stream)) + "\n", stream)


def _summarise(compiled: Compiled, previous: Plan | None, stream: TextIO) -> None:
    from shardc.render.summary import summary

    width = min(max(shutil.get_terminal_size().columns, _MIN_WIDTH), _MAX_WIDTH)
    unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
    _print(summary(compiled, previous, width=width, color=_in_color(stream), unicode=unicode), stream)


def _in_color(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


class _Advance(Protocol):
    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def _progress(quiet: bool) -> Iterator[_Advance]:
    """Yield what shows progress on stderr: bars on a terminal, else a line for every tenth of the way."""
    if not quiet and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

        description, rate, last = (
            TextColumn(f"{{task.{field}}}") for field in ("description", "fields[rate]", "fields[note]")
        )
        columns = (description, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), last)
        console = Console(stderr=True, no_color=not _in_color(sys.stderr))
        with Progress(*columns, console=console) as bars:
            tasks: dict[str, TaskID] = {}

            def draw(stage: str, done: int, total: int, note: str = "") -> None:
                if stage not in tasks:  # what an earlier run did does not count for the rate
                    tasks[stage] = bars.add_task(stage, total=total, completed=done, rate="", note=note)
                speed = bars.tasks[bars.task_ids.index(tasks[stage])].speed
                speed_text = f"{speed:.3g}/s" if speed else ""
                bars.update(tasks[stage], completed=done, total=total, rate=speed_text, note=note)

            yield draw
    else:
        tenths: dict[str, int] = {}

        def write(stage: str, done: int, total: int, note: str = "") -> None:
            tenth = 10 * done // max(total, 1)
            if not quiet and tenth > tenths.setdefault(stage, 0):
                tenths[stage] = tenth
                _print(f"{stage} {done}/{total} {note}".rstrip(), sys.stderr)

        yield write


@contextmanager
def _measuring(loaded: LoadedSpec, wanted: bool, quiet: bool) -> Iterator[Measure | None]:
    """Yield what measures a spec's own shards, with progress; None unless that is wanted."""
    if not wanted:
        yield None
        return
    from shardc.measure.own import measure_shards
    from shardc.pipeline import device_of

    hardware, at = device_of(loaded), loaded.at("cluster", "device")
    with _progress(quiet) as advance:
        yield partial(measure_shards, hardware=hardware, at=at, progress=partial(advance, "measure"))


# --- Files ------------------------------------------------------------------------------------------------------------


def _existing_plan(path: str) -> Plan | None:
    """The plan that is about to be replaced; None if there is none that can be read."""
    from shardc.plan import read_plan

    if not os.path.isfile(path):  # a pipe would wait for a writer
        return None
    try:
        return read_plan(path)
    except DiagnosticError:
        return None


def _is_same_file(first: str, second: Path) -> bool:
    return os.path.exists(first) and os.path.samefile(first, second)
