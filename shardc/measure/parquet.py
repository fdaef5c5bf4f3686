"""A campaign's measurements as a Parquet file: the durable record of what a cost model was learned from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import read_bytes

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_WORDS = ["weights", "optimizer"]
_WORD = 40
"""Characters of a dtype or an optimizer; columns that repeat one word are small whatever its length."""

_MOST_VALUES, _MOST_BYTES = 2**25, 2**30
"""Of a campaign; the shipped one has 3.6 million values in 8 MB."""

_COLUMNS = {
    "index": "number of the set in the campaign",
    "batch": "samples of a step",
    "weights": "dtype of the weights",
    "optimizer": "sparse optimizer of the backward operator",
    "tables": "rows, dim, pooling (mean lookups a sample) and access (zipf exponent, or shares of the 17 bins) of each",
    "runs": "runs that the times are medians of",
    "forward_ratio": "forward time of the set, as a ratio to the reference set's",
    "backward_ratio": "backward time of the set, as a ratio to the reference set's",
    "forward_spread": "half the interquartile range of the forward ratios, relative to their median",
    "backward_spread": "half the interquartile range of the backward ratios, relative to their median",
    "reference_forward_ms": "the reference set's own forward time meanwhile",
    "reference_backward_ms": "the reference set's own backward time meanwhile",
}


def schema() -> pyarrow.Schema:
    """The columns, with what they mean in their metadata. One row is one measured set of tables."""
    import pyarrow as pa

    bins = pa.list_(pa.float64())
    table = pa.struct(
        [("rows", pa.int64()), ("dim", pa.int32()), ("pooling", pa.float64()), ("zipf", pa.float64()), ("bins", bins)]
    )
    types = {"index": pa.int64(), "batch": pa.int32(), "runs": pa.int16(), "tables": pa.list_(table)}
    types |= {"weights": pa.string(), "optimizer": pa.string()}
    return pa.schema(
        [pa.field(name, types.get(name, pa.float64()), metadata={"meaning": text}) for name, text in _COLUMNS.items()]
    )


def parquet_bytes(entries: Sequence[dict[str, Any]]) -> bytes:
    """Measurements (see `shardc.measure.campaign.to_entry`) as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet

    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(list(entries), schema=schema())
    pyarrow.parquet.write_table(table, sink, compression="zstd", compression_level=15)
    return bytes(sink.getvalue().to_pybytes())


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `parquet_bytes` made; none if there is no file.

    A few bytes may stand for gigabytes, so what the file says of its own size is looked at before anything is unpacked.

    Raises:
        DiagnosticError: SH603 for a file that is truncated, or not one of these, SH002 for one that is too large.
    """
    if not path.exists():
        return []
    import pyarrow as pa
    import pyarrow.parquet

    data = read_bytes(path, "measurements")
    try:
        stated = pyarrow.parquet.ParquetFile(pa.BufferReader(data))
        if stated.schema_arrow.remove_metadata() != schema().remove_metadata():
            raise _damaged(path, "its columns are not those of this version's measurements")
        values, size = _unpacked(stated.metadata)
        if values > _MOST_VALUES or size > _MOST_BYTES:
            raise _damaged(path, f"it unpacks to {values} values and {size / 2**20:.0f} MiB, more than a campaign has")
        table = pyarrow.parquet.read_table(pa.BufferReader(data), read_dictionary=_WORDS)
        if any(len(word) > _WORD for name in _WORDS for word in table[name].unique().to_pylist() if word):
            raise _damaged(path, "no dtype or optimizer has such a name")
        rows: list[dict[str, Any]] = table.to_pylist()
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise _damaged(path, str(error).partition("\n")[0]) from error
    if any(row[name] is None for row in rows for name in _COLUMNS):
        raise _damaged(path, "some values are missing")
    return rows


def _unpacked(metadata: pyarrow.parquet.FileMetaData) -> tuple[int, int]:
    """Values and bytes of all columns, unpacked, as the file states them."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(column.num_values for column in columns), sum(column.total_uncompressed_size for column in columns)


def _damaged(path: Path, reason: str) -> DiagnosticError:
    fix = "restore the file, or delete it: what the journals beside it hold is kept"
    return DiagnosticError(Diagnostic("SH603", f"{path}: {reason}", help=fix), exit_code=2)
