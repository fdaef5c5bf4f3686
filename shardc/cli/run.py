"""Running a command: streams set up, whatever goes wrong told as a diagnostic."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from shardc.cli.commands import app_for
from shardc.cli.console import configure, stdout_failure, tell
from shardc.diagnostics import Diagnostic, DiagnosticError

_EXTRAS = {"torch", "fbgemm_gpu", "pyarrow"}
"""Modules that only measuring and training need."""

# typer exports errors of wrong usage, but not the class that they have in common.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def run(arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: of the command line; None for the process's own.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started shardc
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        configure(getattr(sys, name), errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return app_for(arguments)(args=arguments, prog_name="shardc", standalone_mode=False) or 0
    except Exception as error:
        failure = _failure(error)
    tell(failure.diagnostics)
    return failure.exit_code


def _failure(error: Exception) -> DiagnosticError:
    if isinstance(error, DiagnosticError):
        wrong_option = any(map(_is_of_option, error.diagnostics))
        return DiagnosticError(*error.diagnostics, exit_code=2) if wrong_option else error
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRAS:
        return _missing_extra(error)
    if isinstance(error, _UsageError):
        return _wrong_usage(error)
    if isinstance(error, OSError) and _raised_by_typer(error):
        return stdout_failure(error)
    return _internal(error)


def _is_of_option(finding: Diagnostic) -> bool:
    """Say whether what is not valid in a spec was set on the command line, so that the spec itself has no fault."""
    return finding.code.startswith("SH1") and finding.location is not None and finding.location.file.startswith("--")


def _raised_by_typer(error: OSError) -> bool:
    """Say whether typer's own code failed: it touches no file but stdout, for --help."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].partition(".")[0] in {"typer", "click"}


def _missing_extra(error: ModuleNotFoundError) -> DiagnosticError:
    fix = "pip install 'shardc[cpu]', or 'shardc[gpu]' where there is a GPU"
    return DiagnosticError(Diagnostic("SH604", f"{error.name} is not installed", help=fix), exit_code=2)


def _wrong_usage(error: Exception) -> DiagnosticError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "shardc"
    message = error.format_message()  # type: ignore[attr-defined]
    return DiagnosticError(Diagnostic("SH902", message, help=f"see {command} --help"), exit_code=2)


def _internal(error: Exception) -> DiagnosticError:
    if os.environ.get("SHARDC_DEBUG"):
        traceback.print_exception(error)
    fix = "this is a bug in shardc: please report it with what SHARDC_DEBUG=1 shows"
    return DiagnosticError(Diagnostic("SH901", f"{type(error).__name__}: {error}", help=fix), exit_code=2)
