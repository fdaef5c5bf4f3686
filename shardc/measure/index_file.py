"""Access distribution of recorded lookups: a `torch.save`d tensor of indices, plain or gzip'd."""

from __future__ import annotations

import gzip
import pickle
import struct
import zlib
from typing import IO, cast

import numpy as np
import torch

from shardc.access import BIN_EDGES
from shardc.diagnostics import Diagnostic, DiagnosticError, Location
from shardc.spec import Bins


def read_bins(path: str, rows: int, lookups: float, at: Location | None = None) -> Bins:
    """The 17 bins of one step, from lookups recorded in a file.

    The file holds a one-dimensional tensor of indices, or the public access dataset's (indices, offsets, lengths) of
    one table. It is loaded as data only: nothing in it is executed.

    Args:
        path: the file; gzip'd if its name ends in `.gz`.
        rows: rows of the table, which no index may reach.
        lookups: lookups of one step: a longer recording is thinned to them at random, as bins are of one step.
        at: where the spec names the file, for diagnostics.

    Raises:
        DiagnosticError: SH001 when there is no such file, SH603 when it is not an index file of this table.
    """
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            content = torch.load(cast(IO[bytes], file), weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise DiagnosticError(Diagnostic("SH001", f"no such index file: {path}", at), exit_code=2) from None
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zlib.error, struct.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _unreadable(path, reason, at) from error
    indices = content[0] if isinstance(content, tuple | list) and content else content
    integers = isinstance(indices, torch.Tensor) and indices.dtype in (torch.int32, torch.int64)
    if not integers or indices.dim() != 1 or not len(indices):
        expected = "a non-empty one-dimensional tensor of integers, or (indices, offsets, lengths)"
        raise _unreadable(path, f"expected {expected}", at)
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= rows:
        raise _unreadable(path, f"index {low if low < 0 else high} is outside the table's {rows} rows", at)
    counts = np.unique(indices.numpy(), return_counts=True)[1].astype(np.int64)
    if lookups < len(indices):
        counts = np.random.default_rng(0).binomial(counts, lookups / len(indices))
        counts = counts[counts > 0] if counts.any() else np.ones(1, dtype=np.int64)
    shares = np.bincount(np.searchsorted(BIN_EDGES, counts), minlength=len(BIN_EDGES) + 1) / len(counts)
    return Bins(tuple(map(float, shares)))


def _unreadable(path: str, reason: str, at: Location | None) -> DiagnosticError:
    fix = "write it with torch.save(indices, path), one int64 tensor of row indices"
    return DiagnosticError(Diagnostic("SH603", f"index file {path}: {reason}", at, help=fix))
