"""Reading a plan that is named on a command line: a file, stdin, or a file of a git revision."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import MAX_BYTES
from shardc.git import ask_git
from shardc.passes.verify import verify_alone
from shardc.plan import Plan, parse_plan, read_plan

STDIN = "-"


def read_given(name: str) -> Plan:
    """Read a plan whose shards make sense.

    Args:
        name: a path, "-" for stdin, or REV:PATH, which git shows: PATH from the top of the repository, or from here
            where it starts with "./". A file of such a name comes first.

    Raises:
        DiagnosticError: as of `shardc.plan.read_plan`; SH320 when git has no such file (exit code 2); SH305 or SH306
            when shards do not make up tables.
    """
    if name == STDIN:
        plan = parse_plan("stdin", plan_text("stdin", sys.stdin.buffer.read(MAX_BYTES + 1)))
    elif ":" in name and not name.startswith("-") and not os.path.exists(name):
        plan = parse_plan(name, plan_text(name, _show(name)))
    else:
        plan = read_plan(name)
    return sound(name, plan)


def sound(name: str, plan: Plan) -> Plan:
    """Return a plan whose shards make sense.

    Args:
        name: what to call it in messages.
        plan: the plan as it was read.

    Raises:
        DiagnosticError: SH305 or SH306 when its shards do not make up tables that TorchRec runs.
    """
    if faults := verify_alone(plan):
        raise DiagnosticError(*(replace(fault, message=f"{name}: {fault.message}") for fault in faults))
    return plan


def _show(name: str) -> bytes:
    """What git shows of REV:PATH."""
    try:
        answer = ask_git("show", name)
    except OSError as error:
        message = f"cannot read {name}: there is no such file, and git cannot be run: {error.strerror}"
        raise DiagnosticError(Diagnostic("SH320", message), exit_code=2) from None
    if answer.failed:
        reason, *hints = answer.said.strip().split("\n")
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
