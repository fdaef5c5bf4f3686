"""Reading and writing whole files, with every failure of the file system as a diagnostic."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from shardc.diagnostics import Diagnostic, DiagnosticError, Location

MAX_BYTES = 64 * 2**20
"""The largest plan, or file of weights, that is read."""

MAX_SPEC_BYTES = 16 * 2**20
"""The largest spec or table file that is read; one of 100,000 tables has about 7 MB. Where its values stand takes a
hundred times as much memory."""

_PATIENCE_S = 10
"""How long a pipe may give nothing."""

_BOM = b"\xef\xbb\xbf"

_TEMPORARY = ".shardc-", ".tmp"

_LEFT_OVER_S = 3600
"""Age from which a temporary file is what a killed process left: writing one takes seconds."""


def read_bytes(path: str | os.PathLike[str], what: str = "file", most: int | None = None) -> bytes:
    """Read a file whole.

    Args:
        path: the file, or a pipe that somebody writes to.
        what: what the file is to the user ("spec", "plan"), for the message.
        most: bytes that it may have; None for `MAX_BYTES`.

    Raises:
        DiagnosticError: SH001 or SH002, exit code 2.
    """
    name = os.fspath(path)
    most = MAX_BYTES if most is None else most
    try:
        with open(name, "rb", opener=_at_once) as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise _failure("SH001", f"cannot read the {what} {name}: no such file") from None
    except (OSError, ValueError) as error:
        raise _failure("SH002", f"cannot read the {what} {name}: {reason(error)}") from None
    if len(data) > most:
        raise _failure("SH002", f"cannot read the {what} {name}: it is larger than {most // 2**20} MiB")
    return data


def _at_once(name: str, flags: int) -> int:
    """Open a file without waiting for ever for somebody to write to it.

    Raises:
        OSError: for a pipe that gives nothing.
    """
    descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        if not select.select([descriptor], [], [], _PATIENCE_S)[0]:
            os.close(descriptor)
            raise OSError("it is a pipe that nobody writes to")
        os.set_blocking(descriptor, True)
    return descriptor


def is_within(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Say whether a file is in a folder or below it, wherever links lead."""
    real, above = os.path.realpath(path), os.path.realpath(folder or ".")
    return real.startswith(os.path.join(above, ""))


def is_hidden(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Say whether a file below a folder, or a folder between them, is hidden as .git is, wherever links lead."""
    below = os.path.relpath(os.path.realpath(path), os.path.realpath(folder or "."))
    return any(part.startswith(".") for part in below.split(os.sep))


def read_text(path: str | os.PathLike[str], what: str = "file", most: int | None = None) -> str:
    """Read a UTF-8 file, with or without a byte order mark; as `read_bytes` otherwise.

    Raises:
        DiagnosticError: SH001, SH002 or SH003, exit code 2.
    """
    name = os.fspath(path)
    data = read_bytes(name, what, most).removeprefix(_BOM)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        line = data[start:].split(b"\n", 1)[0].rstrip(b"\r")
        location = Location(
            file=name,
            line=data.count(b"\n", 0, start) + 1,
            column=len(data[start : error.start].decode()) + 1,
            length=1,
            text=line.decode(errors="replace"),
        )
        byte = data[error.start]
        raise _failure("SH003", f"the {what} is not UTF-8: byte 0x{byte:02x}", location, "save it as UTF-8") from None


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        DiagnosticError: SH004 when it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise _failure("SH004", f"cannot make the folder {os.fspath(path)}: {reason(error)}") from None


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename.

    An existing file keeps its permissions, a symbolic link stays one, and a device or pipe is written in place.
    Temporary files of an hour ago, which killed processes left in that folder, are removed.

    Raises:
        DiagnosticError: SH004, exit code 2; the file is then as it was.
    """
    name = os.fspath(path)
    try:
        try:
            mode = os.stat(name).st_mode
        except FileNotFoundError:
            mode = None
        if mode is None or stat.S_ISREG(mode):
            _replace(os.path.realpath(name), data, mode)
        else:
            with open(name, "wb") as file:
                file.write(data)
    except (OSError, ValueError) as error:
        raise _failure("SH004", f"cannot write {name}: {reason(error)}") from None


@contextmanager
def journal(path: str | os.PathLike[str]) -> Iterator[Callable[[bytes], None]]:
    """Yield what adds a line to a file, which is on the disk when that returns.

    A last line that a crash has torn is cut off first, and one that the disk has no room for is taken back. A journal
    has one writer at a time, where the file system has locks.

    Raises:
        DiagnosticError: SH004, exit code 2; the lines before are as they were.
    """
    name = os.fspath(path)

    def add(line: bytes) -> None:
        end = file.tell()
        try:
            rest = memoryview(line + b"\n")
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise _failure("SH004", f"cannot write {name}: {reason(error)}") from None

    try:
        file = open(name, "ab+", buffering=0)  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise _failure("SH004", f"cannot write {name}: {reason(error)}") from None
    with file:
        _lock(file.fileno(), name)
        try:
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)
        except OSError as error:
            raise _failure("SH004", f"cannot write {name}: {reason(error)}") from None
        yield add


@contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder, where its file system has locks.

    A lock ends with its process, however that ends.

    Raises:
        DiagnosticError: SH004 when another process is at work there, exit code 2.
    """
    name = os.fspath(folder)
    try:
        descriptor = os.open(name, os.O_RDONLY)
    except OSError as error:
        raise _failure("SH004", f"cannot write to {name}: {reason(error)}") from None
    try:
        _lock(descriptor, name)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, name: str) -> None:
    """Lock a file or folder until it is closed.

    Raises:
        DiagnosticError: SH004 when another process has it locked.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        message = f"cannot write to {name}: another process is doing so"
        raise _failure("SH004", message, advice="wait until it has ended") from None
    except OSError:  # a file system without locks, as some network file systems are
        return


def _replace(target: str, data: bytes, mode: int | None) -> None:
    folder = os.path.dirname(target)
    _remove_left_over(folder)
    temporary = os.path.join(folder, f"{_TEMPORARY[0]}{os.getpid()}-{os.urandom(4).hex()}{_TEMPORARY[1]}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _remove_left_over(folder: str) -> None:
    """Remove temporary files of killed processes; those of others that write now are too young."""
    oldest = time.time() - _LEFT_OVER_S
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(_TEMPORARY[0]) and entry.name.endswith(_TEMPORARY[1])):
                continue
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)


def _sync_folder(folder: str) -> None:
    """Make the rename itself durable where the file system can; the content is safe either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def reason(error: OSError | ValueError) -> str:
    """Return the system's own words ("Is a directory"), lower case, without errno and path."""
    words = (isinstance(error, OSError) and error.strerror) or str(error)
    return words[:1].lower() + words[1:]


def _failure(code: str, message: str, location: Location | None = None, advice: str | None = None) -> DiagnosticError:
    return DiagnosticError(Diagnostic(code, message, location, advice), exit_code=2)
