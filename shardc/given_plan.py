"""Reading a plan that is named on a command line: a file, stdin, or a file of a git revision."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import MAX_BYTES, read_text
from shardc.git import ask_git
from shardc.passes.verify import verify_alone
from shardc.plan import Plan, parse_stated

STDIN = "-"


def read_given(name: str) -> Plan:
    """Read a plan whose shards make sense.

    Args:
        name: a path, "-" for stdin, or REV:PATH, which git shows: PATH from the top of the repository, or from here
            where it starts with "./". A file of such a name comes first.

    Raises:
        DiagnosticError: as of `shardc.plan.read_plan`; SH320 when git has no such file; SH305 or SH306 when shards do
            not make up tables; always with exit code 2, as nothing is found where nothing could be looked at.
    """
    return stated(*_text_of(name))[0]


def read_stated(name: str) -> tuple[Plan, tuple[Diagnostic, ...]]:
    """Read a plan whose stated figures are shown: the plan, and SH312 as a warning if it was edited.

    Raises:
        DiagnosticError: as of `read_given`.
    """
    return stated(*_text_of(name))


def stated(name: str, text: str) -> tuple[Plan, tuple[Diagnostic, ...]]:
    """Return the plan that a text is, and SH312 as a warning if it was edited.

    Args:
        name: what to call it in messages.
        text: the document.

    Raises:
        DiagnosticError: SH302 or SH303 when it is no plan, SH305 or SH306 when its shards do not make up tables that
            TorchRec runs; exit code 2.
    """
    try:
        plan, as_written = parse_stated(name, text)
    except DiagnosticError as error:
        raise DiagnosticError(*error.diagnostics, exit_code=2) from None
    if faults := verify_alone(plan):
        renamed = (replace(fault, message=f"{name}: {fault.message}") for fault in faults)
        raise DiagnosticError(*renamed, exit_code=2)
    if as_written is not False:
        return plan, ()
    message = f"{name} was edited after it was compiled: its figures may not be its placement's"
    fix = "shardc compile SPEC --base PLAN --max-moved 0 keeps its placement, with figures that are true of it"
    return plan, (Diagnostic("SH312", message, help=fix, severity="warning"),)


def is_file(name: str) -> bool:
    """Say whether a plan is named by its path, not as "-" or REV:PATH."""
    return name != STDIN and (":" not in name or name.startswith("-") or os.path.exists(name))


def _text_of(name: str) -> tuple[str, str]:
    """What to call a plan in messages, and its text."""
    if name == STDIN:
        return "stdin", plan_text("stdin", sys.stdin.buffer.read(MAX_BYTES + 1))
    if is_file(name):
        return name, read_text(name, "plan")
    return name, plan_text(name, _show(name))


def _show(name: str) -> bytes:
    """The content of REV:PATH."""
    try:
        answer = ask_git("cat-file", "blob", name)
    except OSError as error:
        message = f"cannot read {name}: there is no such file, and git cannot be run: {error.strerror}"
        raise DiagnosticError(Diagnostic("SH320", message), exit_code=2) from None
    if answer.failed:
        if ask_git("cat-file", "-t", name).data.strip() == b"tree":
            message, inside = f"cannot read {name}: it is a folder", f"{name.rstrip('/')}/model.plan.json"
            fix = f"name a file in it: {inside.replace(':/', ':')}"
            raise DiagnosticError(Diagnostic("SH320", message, help=fix), exit_code=2)
        answer = ask_git("show", name)  # whose words are for people
        reason, *hints = answer.said.strip().split("\n") or [""]
        message = f"cannot read {name}: there is no such file, and git says: {reason.removeprefix('fatal: ')}"
        fix = (
            hints[0].removeprefix("hint: ")
            if hints
            else "REV:PATH is a path from the top of the repository, REV:./PATH one from here"
        )
        raise DiagnosticError(Diagnostic("SH320", message, help=fix), exit_code=2)
    return answer.data


def plan_text(name: str, data: bytes) -> str:
    """Return the text of a plan that no file holds.

    Raises:
        DiagnosticError: SH002 when it is too large, SH003 when it is not UTF-8, exit code 2.
    """
    if len(data) > MAX_BYTES:
        message = f"cannot read the plan {name}: it is larger than {MAX_BYTES // 2**20} MiB"
        raise DiagnosticError(Diagnostic("SH002", message), exit_code=2)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"the plan {name} is not UTF-8: byte 0x{error.object[error.start]:02x}"
        raise DiagnosticError(Diagnostic("SH003", message), exit_code=2) from None
