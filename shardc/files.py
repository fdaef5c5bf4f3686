"""Reading and writing whole files, with every failure of the file system as a diagnostic."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shardc.diagnostics import Diagnostic, DiagnosticError, Location

MAX_BYTES = 64 * 2**20
"""The largest text file that is read; a spec of 100,000 tables has about 10 MB."""

_BOM = b"\xef\xbb\xbf"


def read_text(path: str | os.PathLike[str], what: str = "file") -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Args:
        path: the file.
        what: what the file is to the user ("spec", "plan"), for the message.

    Raises:
        DiagnosticError: SH001, SH002 or SH003, exit code 2.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _failure("SH001", f"cannot read the {what} {name}: no such file") from None
    except (OSError, ValueError) as error:
        raise _failure("SH002", f"cannot read the {what} {name}: {_reason(error)}") from None
    if len(data) > MAX_BYTES:
        raise _failure("SH002", f"cannot read the {what} {name}: it is larger than {MAX_BYTES // 2**20} MiB")
    data = data.removeprefix(_BOM)
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
        raise _failure("SH004", f"cannot make the folder {os.fspath(path)}: {_reason(error)}") from None


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename.

    An existing file keeps its permissions, a symbolic link stays one, and a device or pipe is written in place.

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
        raise _failure("SH004", f"cannot write {name}: {_reason(error)}") from None


@contextmanager
def journal(path: str | os.PathLike[str]) -> Iterator[Callable[[bytes], None]]:
    """Yield what adds a line to a file, which is on the disk when that returns.

    A last line that a crash has torn is cut off first, and one that the disk has no room for is taken back.

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
            raise _failure("SH004", f"cannot write {name}: {_reason(error)}") from None

    try:
        file = open(name, "ab+", buffering=0)  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise _failure("SH004", f"cannot write {name}: {_reason(error)}") from None
    with file:
        try:
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)
        except OSError as error:
            raise _failure("SH004", f"cannot write {name}: {_reason(error)}") from None
        yield add


def _replace(target: str, data: bytes, mode: int | None) -> None:
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".shardc-{os.getpid()}-{os.urandom(4).hex()}.tmp")
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


def _sync_folder(folder: str) -> None:
    """Make the rename itself durable where the file system can; the content is safe either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError | ValueError) -> str:
    """Return the system's own words ("Is a directory"), lower case, without errno and path."""
    words = (isinstance(error, OSError) and error.strerror) or str(error)
    return words[:1].lower() + words[1:]


def _failure(code: str, message: str, location: Location | None = None, advice: str | None = None) -> DiagnosticError:
    return DiagnosticError(Diagnostic(code, message, location, advice), exit_code=2)
