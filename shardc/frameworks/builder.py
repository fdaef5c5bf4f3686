"""Runs the user's function that builds a model: the only place in shardc that executes code of others."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.frameworks.torchrec import INSTALL

_LINES = 8
"""Lines of a foreign traceback that are shown."""


def build(reference: str) -> Any:
    """Import a function and return what it returns, called without arguments under `torch.device("meta")`.

    Packages of the working directory come first, as with `python -m`. Tensors that the function makes take no memory,
    unless it names another device for them. What the code prints goes to stderr.

    Args:
        reference: `package.module:function`.

    Raises:
        DiagnosticError: exit code 2; SH902 for a reference of another form, SH701 when the code cannot be imported or
            called, with the last lines of its traceback.
    """
    import torch

    module, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        message = f"expected package.module:function, found {reference}"
        raise DiagnosticError(Diagnostic("SH902", message, help="for example --from models.dlrm:build"), exit_code=2)
    with _working_folder(), contextlib.redirect_stdout(sys.stderr):
        with _told(f"importing {module} failed"):
            if not _exists(module):
                raise _failure(f"no module {module} in {os.getcwd()}, nor installed")
            imported = importlib.import_module(module)
        function = _function(imported, module, name)
        with _told(f"{reference} failed"), torch.device("meta"):
            return function()


def _exists(module: str) -> bool:
    """Whether a module is there, which imports the packages that it is in."""
    package, _, _ = module.rpartition(".")
    if package and not _exists(package):
        return False
    if package:
        importlib.import_module(package)
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a module cannot have others in it
        return False
    except ValueError:  # of a module that was not imported by the usual means
        return module in sys.modules


def _function(imported: Any, module: str, name: str) -> Callable[[], Any]:
    import torch

    try:
        found = attrgetter(name)(imported)
    except AttributeError:
        close = difflib.get_close_matches(name, dir(imported), n=1)
        raise _failure(f"{module} has no {name}", f'did you mean "{close[0]}"?' if close else None) from None
    if isinstance(found, torch.nn.Module) or not callable(found):
        message = f"{module}:{name} is a {type(found).__name__}, not a function that builds a model"
        raise _failure(message, "write a function without arguments that returns it")
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """Let imports see the working directory, first of all."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the code may have changed it
            sys.path.remove(folder)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Tell of whatever goes wrong in foreign code: all of it is that code's failure, and none a bug of shardc."""
    try:
        yield
    except DiagnosticError:
        raise
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {error}".rstrip(": ").partition("\n")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == "torchrec"
        raise _failure(f"{what}: {cause}", INSTALL if missing else None, _where(error)) from error


def _where(error: BaseException) -> tuple[str, ...]:
    """The last lines of a traceback, below shardc's own frames, and what else the error says."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen importlib")
    ]
    lines = [f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames]
    if isinstance(error, SyntaxError):
        lines.append(f"{error.filename}:{error.lineno}: {(error.text or '').strip()}")
    return tuple([*lines, *str(error).splitlines()[1:]][-_LINES:])


def _failure(message: str, fix: str | None = None, notes: tuple[str, ...] = ()) -> DiagnosticError:
    return DiagnosticError(Diagnostic("SH701", message, help=fix, notes=notes), exit_code=2)
