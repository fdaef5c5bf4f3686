"""Recorded lookups: files of the public access dataset (dlrm_datasets), or one `torch.save`d tensor; plain or gzip'd.

A file of the dataset holds (indices, offsets, lengths) of T tables and a batch of B samples: lengths is int[T, B],
offsets int[T * B + 1] is their running sum, and table t looks up indices[offsets[t * B] : offsets[(t + 1) * B]]. The
public files have several GB. A gzip'd one is unpacked to a temporary file, in the folder that TMPDIR names; unpacked
files are mapped, not read; and the indices of only one table at a time are in memory.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from shardc.access import BIN_EDGES
from shardc.diagnostics import Diagnostic, DiagnosticError, Location
from shardc.spec import Bins, IndexFile, LoadedSpec, Table

UNPACKED_RATIO = 100
"""A gzip'd file may unpack to this many times its size (the public ones: about 4), or to `UNPACKED_FLOOR` bytes."""

UNPACKED_FLOOR = 2**30

LEGACY_BYTES = 2**30
"""Files in the format that torch.save wrote before torch 1.6 cannot be mapped: they are read whole, up to this size."""

Progress = Callable[[str, int, int], None]
"""Is told of a stage, how much of it is done, and how much there is."""

_CHUNK = 2**20
_RECORD_BYTES = 2**20
_FIX = "write it with torch.save, one int64 tensor of row indices or the (indices, offsets, lengths) of dlrm_datasets"


@dataclass(frozen=True, slots=True)
class RecordedTable:
    """What was recorded of one table.

    Attributes:
        rows: the largest index + 1, which the table's rows may exceed.
        lookups: number of indices, at least one.
        bins: shares of the touched rows by how often they were looked up.
    """

    rows: int
    lookups: int
    bins: Bins


@dataclass(frozen=True, slots=True)
class RecordedBatch:
    """What was recorded of a batch.

    Attributes:
        batch: samples.
        tables: one for each table of the file, None where a table has no lookups.
    """

    batch: int
    tables: tuple[RecordedTable | None, ...]


def read_accesses(loaded: LoadedSpec) -> dict[str, Bins]:
    """Bins of one step for each table of a spec that names an index file; each file is unpacked and opened once.

    A recording of more lookups than a step has is thinned to them at random, as bins are of one step.

    Raises:
        DiagnosticError: everything that is wrong. Exit code 2 where a file cannot be read: SH001, SH002, SH004 (no room
            to unpack it), SH603. Exit code 1 where it does not go with the spec: SH102 or SH104 (which table of the
            file), SH603 (a row that the table does not have, a table without lookups).
    """
    users: dict[str, list[tuple[Table, int | None]]] = {}
    for table in loaded.tables:
        if isinstance(table.access, IndexFile):
            users.setdefault(loaded.resolve(table.access.path), []).append((table, table.access.table))
    bins: dict[str, Bins] = {}
    failures: list[DiagnosticError] = []
    for path, tables in users.items():
        try:
            with _opened(_File(path, loaded.at_table(tables[0][0], "access"))) as recording:
                for table, position in tables:
                    try:
                        here = replace(recording, file=_File(path, loaded.at_table(table, "access")))
                        bins[table.name] = _bins_for(here, position, table, loaded.spec.model.global_batch)
                    except DiagnosticError as error:
                        failures.append(error)
        except DiagnosticError as error:
            failures.append(error)
    if failures:
        findings = [finding for failure in failures for finding in failure.diagnostics]
        raise DiagnosticError(*findings, exit_code=max(failure.exit_code for failure in failures))
    return bins


def read_batch(path: str, progress: Progress | None = None) -> RecordedBatch:
    """Rows, lookups and bins of every table in a file of the public dataset's form.

    Raises:
        DiagnosticError: SH001, SH002, SH004 (no room to unpack it) or SH603, exit code 2.
    """
    file = _File(path)
    with _opened(file, progress) as recording:
        if recording.batch is None:
            raise file.fault("expected (indices, offsets, lengths), found one tensor")
        tables = []
        for position in range(recording.tables):
            tables.append(_summary(recording.indices(position)))
            if progress:
                progress("tables", position + 1, recording.tables)
        if not any(tables):
            raise file.fault("there are no lookups in it")
        return RecordedBatch(recording.batch, tuple(tables))


def _summary(indices: NDArray[Any]) -> RecordedTable | None:
    return RecordedTable(int(indices.max()) + 1, len(indices), _bins(indices)) if len(indices) else None


def _bins_for(recording: _Recording, position: int | None, table: Table, global_batch: int) -> Bins:
    """Bins of a table of a spec, and whether the recording can be of that table."""
    file, count = recording.file, recording.tables
    if position is None and count > 1:
        fix = f'say which, from 0 to {count - 1}: access = {{ indices = "…", table = 0 }}'
        raise file.fault(f'it has {count} tables; which is table "{table.name}"?', code="SH102", fix=fix, exit_code=1)
    if position is not None and position >= count:
        reason = f"there is no table {position} in it: it has {count}, counted from 0"
        raise file.fault(reason, code="SH104", fix=None, exit_code=1)
    indices = recording.indices(position or 0)
    if not len(indices):
        fix = 'describe its accesses in another way, such as { zipf = 1.05 } or "uniform"'
        raise file.fault(f'there are no lookups of table "{table.name}" in it', fix=fix, exit_code=1)
    if (high := int(indices.max())) >= table.rows:
        reason = f'index {high} is outside the {table.rows} rows of table "{table.name}"'
        raise file.fault(reason, fix=f"is it the table's own recording? rows = {high + 1} would do", exit_code=1)
    return _bins(indices, global_batch * table.pooling)


def _bins(indices: NDArray[Any], lookups: float = float("inf")) -> Bins:
    """Bins of some lookups, or of as many as `lookups` drawn from them."""
    counts = np.unique(indices, return_counts=True)[1].astype(np.int64)
    if lookups < len(indices):
        counts = np.random.default_rng(0).binomial(counts, lookups / len(indices))
        counts = counts[counts > 0] if counts.any() else np.ones(1, dtype=np.int64)
    shares = np.bincount(np.searchsorted(BIN_EDGES, counts), minlength=len(BIN_EDGES) + 1) / len(counts)
    return Bins(tuple(map(float, shares)))


# --- One file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """An index file as its user knows it: its path, and where a spec names it."""

    path: str
    at: Location | None = None

    def fault(self, reason: str, *, code: str = "SH603", fix: str | None = _FIX, exit_code: int = 2) -> DiagnosticError:
        return DiagnosticError(Diagnostic(code, f"index file {self.path}: {reason}", self.at, fix), exit_code=exit_code)

    def failure(self, error: OSError) -> DiagnosticError:
        """Say in the system's words why the file cannot be read."""
        if isinstance(error, FileNotFoundError):
            return self.fault("no such file", code="SH001", fix=None)
        return self.fault(_words(error), code="SH002", fix=None)


def _words(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


@dataclass(frozen=True, slots=True)
class _Recording:
    """Recorded lookups, in an unpacked file.

    Attributes:
        file: what a user knows it as.
        load: returns the content: a tensor, or three; mapped where the format allows it.
        tables: T.
        batch: B, None for a single tensor.
    """

    file: _File
    load: Callable[[], Any]
    tables: int
    batch: int | None

    def indices(self, table: int) -> NDArray[Any]:
        """Return int32 or int64[L], the rows that one table looks up, none of them negative.

        The file is mapped anew for every table: with the last reference to the indices go the pages that were read.
        """
        content = self.load()
        found = content.numpy() if self.batch is None else self._slice(content, table, self.batch)
        if len(found) and (low := int(found.min())) < 0:
            raise self.file.fault(f"index {low} of its table {table} is negative")
        return found

    def _slice(self, content: Sequence[torch.Tensor], table: int, batch: int) -> NDArray[Any]:
        indices, offsets, lengths = content
        own = lengths[table].numpy()
        bounds = offsets[table * batch : (table + 1) * batch + 1].numpy().astype(np.int64)
        first, last = int(bounds[0]), int(bounds[-1])
        inside = 0 <= first <= last <= len(indices)
        if not inside or (own < 0).any() or not np.array_equal(np.diff(bounds), own):
            raise self.file.fault(f"offsets and lengths of its table {table} do not agree")
        return indices[first:last].numpy()


@contextmanager
def _opened(file: _File, progress: Progress | None = None) -> Iterator[_Recording]:
    """Yield the recording in a file, which is unpacked for as long if it is gzip'd."""
    try:
        kind = os.stat(file.path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # a device or a pipe may give nothing, or no end
            raise file.fault("it is no regular file", code="SH002", fix=None)
        packed = open(file.path, "rb")  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise file.failure(error if isinstance(error, OSError) else OSError(str(error))) from None
    with packed:
        if packed.read(2) != b"\x1f\x8b":
            yield _recording(file, file.path)
            return
        packed.seek(0)
        with _temporary(file) as unpacked:
            _unpack(file, packed, unpacked, progress)
            yield _recording(file, unpacked.name)


def _recording(file: _File, path: str) -> _Recording:
    """Check what can be checked without reading every table."""
    load = _loader(file, path)
    content = load()
    if _integers(content, 1):
        tables, batch = 1, None
    elif (
        isinstance(content, tuple | list)
        and len(content) == 3
        and all(map(_integers, content, (1, 1, 2)))
        and content[2].numel()
    ):
        tables, batch = content[2].shape
        _check_offsets(file, *content)
    else:
        expected = "a tensor int[L], or (indices int[L], offsets int[T*B+1], lengths int[T, B])"
        parts = content if isinstance(content, tuple | list) and 0 < len(content) < 5 else (content,)
        raise file.fault(f"expected {expected}, found {', '.join(map(_form, parts))}")
    return _Recording(file, load, tables, batch)


def _check_offsets(file: _File, indices: torch.Tensor, offsets: torch.Tensor, lengths: torch.Tensor) -> None:
    tables, batch = lengths.shape
    if len(offsets) != tables * batch + 1:
        expected = f"expected {tables * batch + 1} offsets for {tables} tables and {batch} samples"
        raise file.fault(f"{expected}, found {len(offsets)}")
    first, last = int(offsets[0]), int(offsets[-1])
    if (first, last) != (0, len(indices)):
        raise file.fault(f"expected offsets from 0 to the number of indices, {len(indices)}, found {first} to {last}")


def _integers(value: object, dimensions: int) -> bool:
    """Whether a value is a tensor of integers that is all there."""
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in (torch.int32, torch.int64)
        and value.dim() == dimensions
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        # Strides of 0 make any number of elements out of one.
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _form(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"a {type(value).__name__}"


def _loader(file: _File, path: str) -> Callable[[], Any]:
    """Return what loads an unpacked file, as data only: nothing in it is executed."""
    try:
        with open(path, "rb") as content:
            is_archive = content.read(4) == b"PK\x03\x04"
        size = os.path.getsize(path)
    except OSError as error:
        raise file.failure(error) from None
    if not size:
        raise file.fault("it is empty")
    if is_archive:
        _check_archive(file, path)
        return partial(_load, file, path, mmap=True)
    if size > LEGACY_BYTES:
        reason = f"files that are not of torch.save since torch 1.6 may have {LEGACY_BYTES / 2**30:g} GiB, found "
        raise file.fault(f"{reason}{size / 2**30:.3g} GiB", fix="torch.save what torch.load returns again")
    whole = _load(file, path, mmap=False)
    return lambda: whole


def _check_archive(file: _File, path: str) -> None:
    """Refuse archives that are not what was written, or whose description of the tensors could be large.

    torch reads the description whole, and no checksum.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            sound = all(record.compress_type == zipfile.ZIP_STORED for record in records)
            sound &= all(record.file_size <= _RECORD_BYTES or "/data/" in record.filename for record in records)
            # Records that overlap would be read again and again.
            sound &= sum(record.file_size for record in records) <= os.path.getsize(path)
            altered = archive.testzip() if sound else None
    except Exception as error:
        raise _damaged(file) from error
    if not sound:
        raise file.fault("torch.save does not write such archives")
    if altered is not None:
        raise file.fault("it is damaged: its checksums are not those of its content", fix="fetch or write it again")


def _load(file: _File, path: str, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except Exception as error:  # torch does not say what it raises for which damage
        # torch advises to load the file in a way that executes what is in it.
        if held := re.search(r"GLOBAL (\S+)", str(error)):
            raise file.fault(f"it refers to {held[1]}, and only tensors are loaded") from error
        raise _damaged(file) from error


def _damaged(file: _File) -> DiagnosticError:
    return file.fault("it is damaged, or torch.save did not write it")


# --- Unpacking --------------------------------------------------------------------------------------------------------


@contextmanager
def _temporary(file: _File) -> Iterator[IO[bytes]]:
    """Yield a file that is gone afterwards."""
    try:
        # Without a buffer, which closing would try to write once more where there is no room.
        temporary = tempfile.NamedTemporaryFile(prefix="shardc-", suffix=".pt", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _no_room(file, error) from None
    with temporary:
        yield cast(IO[bytes], temporary)


def _unpack(file: _File, packed: IO[bytes], unpacked: IO[bytes], progress: Progress | None) -> None:
    size = os.fstat(packed.fileno()).st_size
    limit = max(UNPACKED_RATIO * size, UNPACKED_FLOOR)
    written = 0
    with gzip.GzipFile(fileobj=packed) as stream:
        while chunk := _next(file, stream):
            written += len(chunk)
            if written > limit:
                reason = f"it unpacks to more than {limit / 2**30:.3g} GiB, {limit / size:.3g} times its size"
                raise file.fault(reason, fix="if you trust it, unpack it with gunzip and name the unpacked file")
            try:
                _write(chunk, unpacked)
            except OSError as error:
                raise _no_room(file, error) from None
            if progress:
                progress("MiB unpacked", packed.tell() // _CHUNK, size // _CHUNK)


def _next(file: _File, stream: gzip.GzipFile) -> bytes:
    try:
        return stream.read(_CHUNK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = "it ends too early" if isinstance(error, EOFError) else "its gzip'd data is damaged"
        raise file.fault(reason, fix="fetch or write it again") from error
    except OSError as error:
        raise file.failure(error) from None


def _write(chunk: bytes, unpacked: IO[bytes]) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[unpacked.write(rest) :]


def _no_room(file: _File, error: OSError) -> DiagnosticError:
    reason = f"cannot unpack it to a temporary file: {_words(error)}"
    return file.fault(reason, code="SH004", fix="let TMPDIR name a folder with room for several times its size")
