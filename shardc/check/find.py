"""Which specs the arguments of a command stand for: files, folders, globs, plans."""

from __future__ import annotations

import codecs
import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import is_within, read_bytes, reason
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
        unseen: what was not looked at: folders that cannot be read (errors), and links out of a folder (warnings).
    """

    specs: list[str]
    lone: list[str]
    unseen: list[Diagnostic]


def find(arguments: Iterable[str]) -> Found:
    """Return the specs that files, folders, globs and plans stand for, each once, in their order.

    Of a folder these are the TOML files below it that have a plan beside them or say `format = 1` above their first
    section, and those that cannot be read. Hidden folders, virtual environments and links to folders are not looked
    into. A link to a file is left out where it leads out of the folder; one that is named is a spec wherever it leads.

    Raises:
        DiagnosticError: SH001 where a folder or a glob has no spec, or SH002 where that cannot be known; exit code 2.
    """
    specs: dict[str, str] = {}
    lone: dict[str, str] = {}
    unseen: dict[Diagnostic, None] = {}
    for argument in arguments:
        before = len(unseen)
        if os.path.isdir(argument):
            files = list(_below(argument, unseen))
            names = [name for name in files if name.endswith(".toml")]
            lone |= {os.path.abspath(name): name for name in files if not name.endswith(".toml")}
        elif glob.has_magic(argument) and not os.path.exists(argument):
            names = sorted(name for name in glob.glob(argument, recursive=True) if os.path.isfile(name))
        else:
            names = [argument]
        if not names:
            if not any(found.severity == "error" for found in list(unseen)[before:]):
                unseen[Diagnostic("SH001", f"there is no spec in {argument}")] = None
            raise DiagnosticError(*unseen, exit_code=2)
        for name in names:
            spec = default_spec_path(name) or name
            specs.setdefault(os.path.abspath(spec), spec)
    return Found(list(specs.values()), list(lone.values()), list(unseen))


def _below(top: str, unseen: dict[Diagnostic, None]) -> Iterator[str]:
    """Specs below a folder, and plans without one; what is not looked at is added to `unseen`."""

    def no_look(error: OSError) -> None:
        unseen[
            Diagnostic("SH002", f"cannot look into the folder {os.path.normpath(error.filename)}: {reason(error)}")
        ] = None

    for where, folders, files in os.walk(top, onerror=no_look):
        folders[:] = sorted(name for name in folders if not _is_skipped(where, name))
        for name in sorted(files):
            path = os.path.normpath(os.path.join(where, name))
            if name.endswith(".toml"):
                is_meant = os.path.exists(default_plan_path(path)) or _may_be_spec(path)
                # What cannot be read of a file is shown: a link may lead to what is nobody's business.
                if is_meant and not is_within(path, top):
                    message = f"{path} is left out: it is a link that leads out of {top}"
                    fix = "check the folder that it leads to, or name the link itself"
                    unseen[Diagnostic("SH002", message, help=fix, severity="warning")] = None
                    is_meant = False
            else:
                spec = default_spec_path(path)
                is_lone = spec is not None and not os.path.lexists(spec)
                is_meant = is_lone and is_within(path, top) and _is_plan(path)
            if is_meant:
                yield path


def _is_skipped(where: str, name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED or os.path.exists(os.path.join(where, name, "pyvenv.cfg"))


def _may_be_spec(path: str) -> bool:
    """Say whether a file is a spec, or cannot be read, which whoever reads it will be told."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:  # a link that leads nowhere, as editors make for a lock
        return False
    except OSError:
        return True
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes
        head = head.decode("utf-16", "ignore").encode()
    head = head.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return _SPEC.search(_SECTION.split(head, maxsplit=1)[0]) is not None


def _is_plan(path: str) -> bool:
    """Say whether a file is a plan of shardc: other tools have files of such a name too."""
    try:
        return may_be_plan(read_bytes(path, "plan"))
    except DiagnosticError:
        return False
