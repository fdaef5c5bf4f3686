"""Which specs the arguments of a command stand for: files, folders, globs, plans."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import is_within
from shardc.plan import default_plan_path, default_spec_path

_SPEC = re.compile(rb"^(?:\xef\xbb\xbf)?format[ \t]*=[ \t]*1[ \t]*(?:#.*)?\r?$", re.MULTILINE)
_SECTION = re.compile(rb"^[ \t]*\[", re.MULTILINE)
_HEAD = 4096
_SKIPPED = {"node_modules", "__pycache__"}


def find_specs(arguments: Iterable[str]) -> list[str]:
    """Return the specs that files, folders, globs and plans stand for, each once, in their order.

    Of a folder these are the TOML files below it that have a plan beside them or say `format = 1` above their first
    section; hidden folders and virtual environments are not looked into, nor links that lead out of the folder.

    Raises:
        DiagnosticError: SH001 (exit code 2) where a folder or a glob has no spec.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        if os.path.isdir(argument):
            names = list(_below(argument))
        elif glob.has_magic(argument) and not os.path.exists(argument):
            names = sorted(name for name in glob.glob(argument, recursive=True) if os.path.isfile(name))
        else:
            names = [argument]
        if not names:
            raise DiagnosticError(Diagnostic("SH001", f"there is no spec in {argument}"), exit_code=2)
        for name in names:
            spec = default_spec_path(name) or name
            found.setdefault(os.path.abspath(spec), spec)
    return list(found.values())


def _below(top: str) -> Iterator[str]:
    for where, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if not _is_skipped(where, name))
        for name in sorted(files):
            path = os.path.normpath(os.path.join(where, name))
            # What cannot be read of a file is shown: a link may lead to what is nobody's business.
            if not name.endswith(".toml") or not is_within(path, top):
                continue
            if os.path.exists(default_plan_path(path)) or _is_spec(path):
                yield path


def _is_skipped(where: str, name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED or os.path.exists(os.path.join(where, name, "pyvenv.cfg"))


def _is_spec(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return _SPEC.search(_SECTION.split(file.read(_HEAD), maxsplit=1)[0]) is not None
    except OSError:
        return False
