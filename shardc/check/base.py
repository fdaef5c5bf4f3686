"""The older plan that `shardc check --base` compares with: a file, one in a folder, or one at a git revision."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Literal

from shardc.check.context import Base
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import read_text
from shardc.git import ask_git
from shardc.given_plan import STDIN, plan_text, read_stated, stated
from shardc.plan import Plan


def read_base(base: str, path: str) -> Base:
    """Return the older plan, without one where there is none of that name, as for a new spec, or none that can be used.

    Args:
        base: a git revision, which is read without checking it out; a folder, in which the plan has the path that it
            has in the working directory; or one plan, as of `shardc.given_plan.read_given`. A revision comes before a
            folder or file of its name.
        path: the plan that is compared with it.

    Raises:
        DiagnosticError: SH410 when `base` is none of these; exit code 2.
    """
    match _kind(base, [path]):
        case "revision":
            folder, file = os.path.split(os.path.abspath(path))
            content = _git(folder, "show", f"{base}:./{file}")
            name, argument = f"{os.path.relpath(path)} at {base}", f"{base}:./{os.path.relpath(path)}"
            if content is None:
                return Base(name, None, argument)
            return _read(name, argument, lambda: stated(name, plan_text(name, content)))
        case "folder":
            file = os.path.join(base, os.path.relpath(path))
            return _read(file, file, lambda: stated(file, read_text(file, "plan")))
        case "plan":
            return _read("stdin" if base == STDIN else base, base, lambda: read_stated(base))
    raise _nothing(base)


def _read(name: str, argument: str, read: Callable[[], tuple[Plan, tuple[Diagnostic, ...]]]) -> Base:
    """A base, without its plan where there is none, or none that can be used: what it states is compared with."""
    try:
        plan, edited = read()
        return Base(name, None, argument, edited[0].message) if edited else Base(name, plan, argument)
    except DiagnosticError as error:
        found = error.diagnostics[0]
        if found.code == "SH001":
            return Base(name, None, argument)
        where = f" (line {found.location.line})" if found.location else ""
        fault = f"{name} cannot be used: {found.code} {found.message.removeprefix(f'{name}: ')}{where}"
        return Base(name, None, argument, fault)


def base_is_there(base: str, paths: Sequence[str]) -> None:
    """Make sure that there is a base, before anything is compared with it.

    Args:
        base: as of `read_base`.
        paths: the plans that are to be compared; where these are in several repositories, one has to know the revision.

    Raises:
        DiagnosticError: SH410, or SH902 when it is one plan for several; exit code 2.
    """
    kind = _kind(base, paths)
    if kind is None:
        raise _nothing(base)
    if kind == "plan" and len(paths) > 1:
        message = f"--base {base} is one plan, and there are {len(paths)} specs: give a folder or a git revision"
        raise DiagnosticError(Diagnostic("SH902", message), exit_code=2)


def _kind(base: str, paths: Sequence[str]) -> Literal["revision", "folder", "plan"] | None:
    """What a base is, for plans in these places; None if it is nothing."""
    folders = dict.fromkeys(os.path.dirname(os.path.abspath(path)) for path in paths)
    commit = ("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    if not base.startswith("-") and any(_git(folder, *commit) is not None for folder in folders):
        return "revision"
    if os.path.isdir(base):
        return "folder"
    is_plan = base == STDIN or os.path.exists(base) or _type(base) == b"blob"
    return "plan" if is_plan else None


def _nothing(base: str) -> DiagnosticError:
    """What to say of a base that is not there."""
    message = f"nothing to compare with: {base} is no file, folder or git revision here"
    fix = "git fetch it first; for actions/checkout, set fetch-depth: 0"
    if shutil.which("git") is None:
        message, fix = f"nothing to compare with: {base} is no file or folder, and there is no git", "install git"
    elif _type(base) == b"tree":
        message = f"nothing to compare with: {base} is a folder of a revision"
        fix = "name a plan in it, or the revision alone, in which each plan is looked for where it is now"
    elif ":" in base and _git(os.curdir, "rev-parse", "--verify", "--quiet", f"{base.split(':')[0]}^{{commit}}"):
        message = f"nothing to compare with: there is no {base}"
        fix = "REV:PATH is a path from the top of the repository, REV:./PATH one from here"
    return DiagnosticError(Diagnostic("SH410", message, help=fix), exit_code=2)


def _type(base: str) -> bytes | None:
    """What git has at REV:PATH: a blob, which is a file, or a tree, which is a folder."""
    if ":" not in base or base.startswith("-"):
        return None
    kind = _git(os.curdir, "cat-file", "-t", base)
    return kind and kind.strip()


def _git(folder: str, *arguments: str) -> bytes | None:
    """What git says in a folder; None when it fails or is not there."""
    try:
        answer = ask_git("-C", folder, *arguments)
    except OSError:
        return None
    return None if answer.failed else answer.data
