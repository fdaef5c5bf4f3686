"""Which specs the arguments of a command stand for: files, folders, globs, plans."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import is_within, read_bytes
from shardc.plan import default_plan_path, default_spec_path, may_be_plan

_SPEC = re.compile(rb"^(?:\xef\xbb\xbf)?format[ \t]*=[ \t]*1[ \t]*(?:#.*)?$", re.MULTILINE)
_SECTION = re.compile(rb"^[ \t]*\[", re.MULTILINE)
_HEAD = 4096
_SKIPPED = {"node_modules", "__pycache__"}


class Found(NamedTuple):
    """What arguments stand for.

    Attributes:
        specs: files of specs.
        lone: plans in folders that have no spec beside them any more.
    """

    specs: list[str]
    lone: list[str]


def find(arguments: Iterable[str]) -> Found:
    """Return the specs that files, folders, globs and plans stand for, each once, in their order.

    Of a folder these are the TOML files below it that have a plan beside them or say `format = 1` above their first
    section; hidden folders and virtual environments are not looked into, nor links that lead out of the folder.

    Raises:
        DiagnosticError: SH001 (exit code 2) where a folder or a glob has no spec.
    """
    specs: dict[str, str] = {}
    lone: dict[str, str] = {}
    for argument in arguments:
        if os.path.isdir(argument):
            files = list(_below(argument))
            names = [name for name in files if name.endswith(".toml")]
            lone |= {os.path.abspath(name): name for name in files if not name.endswith(".toml")}
        elif glob.has_magic(argument) and not os.path.exists(argument):
            names = sorted(name for name in glob.glob(argument, recursive=True) if os.path.isfile(name))
        else:
            names = [argument]
        if not names:
            raise DiagnosticError(Diagnostic("SH001", f"there is no spec in {argument}"), exit_code=2)
        for name in names:
            spec = default_spec_path(name) or name
            specs.setdefault(os.path.abspath(spec), spec)
    return Found(list(specs.values()), list(lone.values()))


def _below(top: str) -> Iterator[str]:
    """Specs below a folder, and plans without one."""
    for where, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if not _is_skipped(where, name))
        for name in sorted(files):
            path = os.path.normpath(os.path.join(where, name))
            spec = default_spec_path(path)
            # What cannot be read of a file is shown: a link may lead to what is nobody's business.
            if not (name.endswith(".toml") or spec) or not is_within(path, top):
                continue
            if spec is None:
                is_meant = os.path.exists(default_plan_path(path)) or _is_spec(path)
            else:
                is_meant = not os.path.lexists(spec) and _is_plan(path)
            if is_meant:
                yield path


def _is_skipped(where: str, name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED or os.path.exists(os.path.join(where, name, "pyvenv.cfg"))


def _is_spec(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            return _SPEC.search(_SECTION.split(head, maxsplit=1)[0]) is not None
    except OSError:
        return False


def _is_plan(path: str) -> bool:
    """Say whether a file is a plan of shardc: other tools have files of such a name too."""
    try:
        return may_be_plan(read_bytes(path, "plan"))
    except DiagnosticError:
        return False
