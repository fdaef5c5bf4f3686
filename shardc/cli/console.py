"""What commands share: their common options, printing, diagnostics, progress, measuring."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TextIO, cast

import typer

from shardc.diagnostics import Diagnostic, DiagnosticError, render
from shardc.files import MAX_BYTES

if TYPE_CHECKING:
    from shardc.passes.profile import Measure
    from shardc.spec import LoadedSpec

_NARROW, _ENDLESS = 40, 10_000  # columns
_COMMAND = re.compile(r"^(?=[^\S\n]*::)", re.MULTILINE)  # what GitHub takes for a command in a log
_CUT = "…"  # where text is cut: as wide as what takes its place in ASCII
_HEAD = 4096  # bytes of a file in which an SVG says what it is
_MAX_SEED = 2**32 - 1  # as in a spec, which is not imported for an option

# --- Arguments and options --------------------------------------------------------------------------------------------


class Effort(StrEnum):
    """How long to search."""

    FAST = "fast"
    BALANCED = "balanced"
    THOROUGH = "thorough"


SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="A spec file (TOML).")]
SeedOption = Annotated[int, typer.Option(metavar="N", min=0, max=_MAX_SEED, help="Seed of every random choice.")]
SpecSeedOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, max=_MAX_SEED, help="Seed of every random choice, instead of the spec's."),
]
EffortOption = Annotated[Effort | None, typer.Option(help="How long to search, instead of what the spec says.")]
MeasureOption = Annotated[
    bool, typer.Option("--measure", help="Measure the spec's own shards on this machine's device first.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Instead of what the spec says: cluster.hosts=2, table.t_1.dim=64. Exit code 2 if it is not valid.",
    ),
]


def a_value(value: str | None) -> str | None:
    """Refuse nothing, and an option, as the value of an option: the value was forgotten, or a variable is not set.

    Raises:
        BadParameter: for "", "--help" and the like.
    """
    if value == "":
        raise typer.BadParameter("expected a value, found an empty one: leave the option out where there is none")
    if value is not None and value.startswith("--"):
        raise typer.BadParameter(f"expected a value, found the option {value}")
    return value


QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what is wrong.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a file of another kind.")]

# --- Output -----------------------------------------------------------------------------------------------------------


def configure(
    stream: TextIO, *, encoding: str | None = None, errors: str | None = None, newline: str | None = None
) -> None:
    """Change how a text stream encodes; None keeps what it does."""
    cast(io.TextIOWrapper, stream).reconfigure(encoding=encoding, errors=errors, newline=newline)


def echo(text: str, stream: TextIO | None = None, *, commands: bool = False) -> None:
    """Print a line on stdout or another stream, or nothing any more once the reader of a pipe has gone.

    Args:
        text: what to print.
        stream: where to; None for stdout.
        commands: whether the text is GitHub's workflow commands. Else a name that looks like one gets a backslash.

    Raises:
        DiagnosticError: SH903, exit code 2, when stdout cannot be written. What stderr cannot take is lost.
    """
    stream = stream or sys.stdout
    if not commands and "::" in text:
        text = _COMMAND.sub(r"\\", text)
    if not in_unicode(stream):
        text = text.replace(_CUT, "~")
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        if stream is sys.stdout:
            raise stdout_failure(error) from None
        _discard(stream)


def stdout_failure(error: OSError) -> DiagnosticError:
    """Give up stdout after a failed write, and return what to tell about it."""
    _discard(sys.stdout)
    message = f"cannot write to stdout: {error.strerror or error}"
    return DiagnosticError(Diagnostic("SH903", message), exit_code=2)


def _discard(stream: TextIO) -> None:
    """Let whatever a stream still holds, or gets, vanish: nothing fails again when Python flushes it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def may_write(*targets: Path | str, force: bool, own: Callable[[bytes], bool] | None = None) -> None:
    """Make sure that files can be written, and that nothing is replaced unasked but an older one of the same kind.

    An empty file may be replaced by anything, a device or pipe is not replaced at all.

    Args:
        targets: files that are about to be written; "-" is stdout.
        force: whether files of any kind are to be replaced.
        own: says of a file's content whether it is of the kind that is written; None where no file is replaced unasked.

    Raises:
        DiagnosticError: SH004, exit code 2.
    """
    for target in filter(lambda target: str(target) != "-", map(Path, targets)):
        reason, fix = None, None
        if not target.parent.is_dir():
            reason = "no such folder"
        elif target.is_dir():
            reason, fix = "is a directory", f"name a file in it: {os.path.join(target, 'NAME')}"
        elif target.is_file() and not force and not _is_own(target, own):
            reason = "it is there already" if own is None else "it is there already, and is no file of that kind"
            fix = "--force replaces it"
        if reason:
            raise DiagnosticError(Diagnostic("SH004", f"cannot write {target}: {reason}", help=fix), exit_code=2)


def _is_own(target: Path, own: Callable[[bytes], bool] | None) -> bool:
    if own is None:
        return False
    try:
        content = target.read_bytes() if target.stat().st_size <= MAX_BYTES else b"?"
    except OSError:
        return False
    return not content or own(content)


def not_an_input(target: Path | str, what: str, inputs: Mapping[str, str]) -> None:
    """Make sure that an output replaces nothing that it is made of; "-" is stdout.

    Args:
        target: where the output goes.
        what: what it is.
        inputs: files that it is made of, and what each is to the user, as of `LoadedSpec.files`.

    Raises:
        DiagnosticError: SH902, exit code 2.
    """
    if str(target) == "-" or not os.path.exists(target):
        return
    for path, meaning in inputs.items():
        if os.path.exists(path) and os.path.samefile(target, path):
            message = f"{target} is the {meaning} itself: the {what} would replace it"
            raise DiagnosticError(Diagnostic("SH902", message), exit_code=2)


def files_of(plan: Path | str) -> dict[str, str]:
    """A plan, the spec beside it and the files that the spec refers to, and what each is to the user."""
    from shardc.plan import default_spec_path
    from shardc.spec import load_spec

    found = {str(plan): "plan"}
    if (spec := default_spec_path(plan)) and os.path.isfile(spec):
        found[spec] = "spec"
        with suppress(DiagnosticError):  # what is no valid spec refers to nothing
            found |= load_spec(spec).files
    return found


def may_draw(picture: Path, *specs: LoadedSpec, force: bool) -> None:
    """Make sure that a picture can be written, as `may_write` does: it is SVG, and is named so.

    Raises:
        DiagnosticError: SH902 where it is named otherwise, or would replace one of the specs; SH004; exit code 2.
    """
    for loaded in specs:
        not_an_input(picture, "picture", loaded.files)
    if not picture.is_dir() and picture.suffix.lower() != ".svg":
        message, fix = f"{picture} cannot be the picture: it is SVG", f"--picture {picture.with_suffix('.svg')}"
        raise DiagnosticError(Diagnostic("SH902", message, help=fix), exit_code=2)
    may_write(picture, force=force, own=_is_svg)


def _is_svg(content: bytes) -> bool:
    return content.lstrip().startswith((b"<svg", b"<?xml")) and b"<svg" in content[:_HEAD]


def report(error: DiagnosticError) -> None:
    """Show what a check found, which is its result, or why it could not run."""
    tell(error.diagnostics, sys.stdout if error.exit_code == 1 else sys.stderr)


def tell(diagnostics: Sequence[Diagnostic], stream: TextIO | None = None) -> None:
    """Show diagnostics on stderr or another stream, and a blank line after them."""
    stream = stream or sys.stderr
    if diagnostics:
        echo(render(diagnostics, color=in_color(stream)) + "\n", stream)


def in_color(stream: TextIO) -> bool:
    """Say whether a stream is a terminal that wants color."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def in_unicode(stream: TextIO) -> bool:
    """Say whether a stream takes every character."""
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def width(stream: TextIO | None = None) -> int:
    """Return the columns of stdout or another stream: of COLUMNS, or of its terminal; a file or pipe cuts nothing."""
    stream = stream or sys.stdout
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return max(int(given), _NARROW)
    if not stream.isatty():
        return _ENDLESS
    try:
        return max(os.get_terminal_size(stream.fileno()).columns, _NARROW)
    except OSError:
        return _NARROW


def count(number: int, what: str) -> str:
    """Return a number of things in words, such as "1 table" or "2 tables"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


# --- Progress ---------------------------------------------------------------------------------------------------------


class Advance(Protocol):
    """Shows how much of a stage is done."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` of a stage are done."""


@contextmanager
def progress(quiet: bool) -> Iterator[Advance]:
    """Yield what shows progress on stderr: bars on a terminal, else a line for every tenth of the way."""
    if not quiet and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

        description, rate, last = (
            TextColumn(f"{{task.{field}}}") for field in ("description", "fields[rate]", "fields[note]")
        )
        columns = (description, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), last)
        console = Console(stderr=True, no_color=not in_color(sys.stderr))
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
                echo(f"{stage} {done}/{total} {note}".rstrip(), sys.stderr)

        yield write


@contextmanager
def measuring(loaded: LoadedSpec, wanted: bool, quiet: bool) -> Iterator[Measure | None]:
    """Yield what measures a spec's own shards, with progress; None unless that is wanted."""
    if not wanted:
        yield None
        return
    from shardc.measure.own import measure_shards
    from shardc.pipeline import device_of

    hardware, at = device_of(loaded), loaded.at("cluster", "device")
    with progress(quiet) as advance:
        yield partial(measure_shards, hardware=hardware, at=at, progress=partial(advance, "measure"))
