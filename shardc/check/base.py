"""The older plan that `shardc check --base` compares with: a file, one in a folder, or one at a git revision."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from shardc.check.context import Base
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import read_text
from shardc.git import ask_git
from shardc.given_plan import plan_text, sound


def read_base(base: str, path: str) -> Base:
    """Return the older plan, without one where there is none of that name, as for a new spec.

    Args:
        base: a plan file; a folder, in which the plan has the path that it has in the working directory; or a git
            revision, which is read without checking it out.
        path: the plan that is compared with it.

    Raises:
        DiagnosticError: SH302, SH303, SH305 or SH306 when what is there is no plan that makes sense, SH002 or SH003
            when git has one that is too large or not UTF-8, SH410 when `base` is neither file, folder nor revision;
            exit code 2.
    """
    if os.path.isfile(base):
        return Base(base, sound(base, read_text(base, "plan")), base)
    if os.path.isdir(base):
        file = os.path.join(base, os.path.relpath(path))
        return Base(file, sound(file, read_text(file, "plan")) if os.path.exists(file) else None, file)
    base_is_there(base, [path])
    folder, name = os.path.split(os.path.abspath(path))
    content = _git(folder, "show", f"{base}:./{name}")
    label = f"{name} at {base}"
    plan = None if content is None else sound(label, plan_text(label, content))
    return Base(label, plan, f"{base}:./{os.path.relpath(path)}")


def base_is_there(base: str, paths: Iterable[str]) -> None:
    """Make sure that there is a base, before anything is compared with it.

    Args:
        base: as of `read_base`.
        paths: the plans that are to be compared; where these are in several repositories, one has to know the revision.

    Raises:
        DiagnosticError: SH410, exit code 2.
    """
    if os.path.isfile(base) or os.path.isdir(base):
        return
    folders = dict.fromkeys(os.path.dirname(os.path.abspath(path)) for path in paths)
    commit = ("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    if not base.startswith("-") and any(_git(folder, *commit) is not None for folder in folders):
        return
    message = f"nothing to compare with: {base} is no file, folder or git revision here"
    fix = "git fetch it first; for actions/checkout, set fetch-depth: 0"
    if shutil.which("git") is None:
        message, fix = f"nothing to compare with: {base} is no file or folder, and there is no git", "install git"
    raise DiagnosticError(Diagnostic("SH410", message, help=fix), exit_code=2)


def _git(folder: str, *arguments: str) -> bytes | None:
    """What git says in a folder; None when it fails or is not there."""
    try:
        answer = ask_git("-C", folder, *arguments)
    except OSError:
        return None
    return None if answer.failed else answer.data
