import gzip
import io
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import pytest
import torch

from shardc.diagnostics import DiagnosticError
from shardc.measure import index_file
from shardc.measure.index_file import RecordedTable, read_accesses, read_batch
from shardc.measure.streams import draw_indices
from shardc.spec import Zipf, load_spec, parse_spec


def save(path, content, **options):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as file:
        torch.save(content, file, **options)
    return str(path)


def recording(lengths, indices, dtype=torch.int64):
    """The form of the public files."""
    lengths = torch.tensor(lengths, dtype=dtype)
    offsets = torch.cat([torch.zeros(1, dtype=dtype), lengths.flatten().cumsum(0).to(dtype)])
    return torch.as_tensor(indices).to(dtype), offsets, lengths


def spec(*accesses, rows=1000, batch=2**31):
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": batch},
        "cluster": {"device": "h100-80gb", "devices_per_host": 2},
        "defaults": {"rows": rows, "dim": 4, "pooling": 1},
        "table": [{"name": f"t{number}", "access": access} for number, access in enumerate(accesses)],
    }


def read_bins(path, rows=1000, batch=2**31, **access):
    return read_accesses(parse_spec(spec({"indices": str(path), **access}, rows=rows, batch=batch)))["t0"]


def refused(read, *arguments, **options):
    """The one finding of a call that fails, and its exit code."""
    with pytest.raises(DiagnosticError) as caught:
        read(*arguments, **options)
    (found,) = caught.value.diagnostics
    assert "weights_only" not in str(found)
    return found, caught.value.exit_code


# Row 7 is looked up once, 8 twice, 9 three times, 10 four times, 11 five times and 0 seventeen times.
INDICES = torch.tensor([7] + [8] * 2 + [9] * 3 + [10] * 4 + [11] * 5 + [0] * 17)
SIXTHS = (1, 1, 2, 1, 0, 1, *[0] * 11)
THREE = recording([[1, 2], [0, 0], [1, 3]], [0, 1, 1, 2, 5, 5, 5])


# --- What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cat.pt", "cat.pt.gz"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bins_are_shares_of_unique_rows_by_access_count(tmp_path, name, dtype):
    path = save(tmp_path / name, INDICES.to(dtype)[torch.randperm(len(INDICES))])
    assert read_bins(path, rows=12).shares == pytest.approx([share / 6 for share in SIXTHS])


def test_edges_belong_to_the_bin_below(tmp_path):
    path = save(tmp_path / "a.pt", torch.repeat_interleave(torch.tensor([32768, 32769, 1])))
    assert np.array(read_bins(path, rows=3).shares)[[0, 15, 16]] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("name", ["a.pt", "a.pt.gz"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_every_table_of_a_public_file_is_read(tmp_path, name, legacy, dtype):
    content = tuple(part.to(dtype) for part in THREE)
    path = save(tmp_path / name, content, _use_new_zipfile_serialization=not legacy)
    read = read_batch(path)
    first, second, third = read.tables
    assert (read.batch, second) == (2, None)
    assert isinstance(first, RecordedTable)
    assert (first.rows, first.lookups, first.bins.shares[:3]) == (2, 3, (0.5, 0.5, 0))
    assert (third.rows, third.lookups, third.bins.shares[:3]) == (6, 4, (0.5, 0, 0.5))


def test_whether_a_file_is_packed_does_not_hang_on_its_name(tmp_path):
    packed = save(tmp_path / "a.pt.gz", INDICES)
    os.rename(packed, tmp_path / "a.pt")
    assert read_bins(tmp_path / "a.pt").shares == pytest.approx([share / 6 for share in SIXTHS])


def test_a_recording_of_many_steps_is_thinned_to_one(tmp_path):
    """Bins are of one step: 32 steps recorded together must not make every row look popular."""
    generator = torch.Generator().manual_seed(0)
    steps = [draw_indices(Zipf(0.9), 100_000, 8192, generator) for _ in range(32)]
    one = read_bins(save(tmp_path / "one.pt", steps[0]), 100_000, 8192)
    many = read_bins(save(tmp_path / "many.pt", torch.cat(steps)), 100_000, 8192)
    assert np.abs(np.array(one.shares) - np.array(many.shares)).max() < 0.03


# --- Which table ------------------------------------------------------------------------------------------------------


def test_a_spec_says_which_table_of_a_file(tmp_path):
    path = save(tmp_path / "a.pt.gz", THREE)
    assert read_bins(path, table=0).shares[:3] == (0.5, 0.5, 0)
    assert read_bins(path, table=2).shares[:3] == (0.5, 0, 0.5)
    assert read_bins(save(tmp_path / "one.pt", INDICES), table=0).shares == pytest.approx([n / 6 for n in SIXTHS])


def test_a_file_that_several_tables_share_is_unpacked_once(tmp_path, monkeypatch):
    unpacked = []
    monkeypatch.setattr(index_file, "_unpack", lambda *given, real=index_file._unpack: unpacked.append(real(*given)))
    path = save(tmp_path / "a.pt.gz", THREE)
    accesses = [{"indices": path, "table": number} for number in (0, 2, 2)]
    bins = read_accesses(parse_spec(spec(*accesses)))
    assert bins["t0"] != bins["t1"] == bins["t2"]
    assert len(unpacked) == 1


def test_which_table_is_a_question_where_there_are_several(tmp_path):
    path = save(tmp_path / "a.pt", THREE)
    found, exit_code = refused(read_bins, path)
    assert (found.code, exit_code) == ("SH102", 1)
    assert 'it has 3 tables; which is table "t0"?' in found.message
    assert "table = 0" in found.help


@pytest.mark.parametrize(
    ("access", "rows", "code", "says"),
    [
        ({"table": 3}, 10, "SH104", "no table 3 in it: it has 3, counted from 0"),
        ({"table": 2}, 5, "SH603", 'index 5 is outside the 5 rows of table "t0"'),
        ({"table": 1}, 10, "SH603", 'no lookups of table "t0"'),
    ],
)
def test_a_table_that_does_not_go_with_the_spec_is_named(tmp_path, access, rows, code, says):
    found, exit_code = refused(read_bins, save(tmp_path / "a.pt", THREE), rows, **access)
    assert (found.code, exit_code) == (code, 1)
    assert says in found.message


def test_everything_wrong_is_said_at_once_where_the_spec_says_it(tmp_path):
    save(tmp_path / "a.pt", THREE)
    (tmp_path / "model.toml").write_text(
        "format = 1\n"
        'model = { name = "m", module = "ebc", global_batch = 2 }\n'
        'cluster = { device = "h100-80gb", devices_per_host = 2 }\n'
        "defaults = { rows = 5, dim = 4, pooling = 1 }\n"
        'tables = { file = "more.csv" }\n'
        "[[table]]\n"
        'name = "b"\n'
        'access = { indices = "a.pt", table = 9 }\n'
    )
    rows = ("name,access", "a,indices=a.pt;table=2", "c,indices=none.pt", "d,indices=a.pt;table=0")
    (tmp_path / "more.csv").write_text("\n".join(rows))
    with pytest.raises(DiagnosticError) as caught:
        read_accesses(load_spec(tmp_path / "model.toml"))
    assert caught.value.exit_code == 2  # a file is not there
    where = {(os.path.basename(f.location.file), f.location.line, f.code) for f in caught.value.diagnostics}
    assert where == {("more.csv", 2, "SH603"), ("model.toml", 8, "SH104"), ("more.csv", 3, "SH001")}


# --- Files that are something else ------------------------------------------------------------------------------------


def test_files_that_cannot_be_opened(tmp_path):
    found, exit_code = refused(read_batch, str(tmp_path / "none.pt"))
    assert (found.code, exit_code, str(tmp_path / "none.pt") in found.message) == ("SH001", 2, True)
    found, exit_code = refused(read_batch, str(tmp_path))
    assert (found.code, exit_code) == ("SH002", 2)
    assert found.message.endswith("is a directory")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (torch.tensor([1.5, 2.0]), "found float32[2]"),
        (torch.tensor(3), "found int64[]"),
        (torch.zeros((2, 2), dtype=torch.int64), "found int64[2, 2]"),
        (torch.tensor([True]), "found bool[1]"),
        ({"indices": INDICES}, "found a dict"),
        ([], "found a list"),
        ("text", "found a str"),
        ([INDICES.tolist()], "found a list"),
        (THREE[:2], "found int64[7], int64[7]"),
        ((THREE[0].float(), *THREE[1:]), "found float32[7], int64[7], int64[3, 2]"),
        ((*THREE[:2], THREE[2].flatten()), "found int64[7], int64[7], int64[6]"),
        ((*THREE[:2], THREE[2][:0]), "found int64[7], int64[7], int64[0, 2]"),
        ((*THREE[:2], "lengths"), "found int64[7], int64[7], a str"),
        ((THREE[0].to_sparse(), *THREE[1:]), "found int64[7]"),
        ((THREE[0].to("meta"), *THREE[1:]), "found int64[7]"),
        ((torch.zeros(1, dtype=torch.int64).expand(10**15), *THREE[1:]), "found int64[1000000000000000]"),
        ((*THREE[:2], torch.zeros(1, dtype=torch.int64).expand(10**9, 10**9)), "int64[1000000000, 1000000000]"),
        ((THREE[0], THREE[1][:-1], THREE[2]), "expected 7 offsets for 3 tables and 2 samples, found 6"),
        ((THREE[0], THREE[1] + 1, THREE[2]), "expected offsets from 0 to the number of indices, 7, found 1 to 8"),
        ((THREE[0][:-1], *THREE[1:]), "the number of indices, 6, found 0 to 7"),
        ((THREE[0], torch.tensor([0, 2, 3, 3, 3, 4, 7]), THREE[2]), "offsets and lengths of its table 0 do not agree"),
        (recording([[2, -1], [3, 3]], THREE[0]), "offsets and lengths of its table 0 do not agree"),
        ((THREE[0], torch.tensor([0, 9, 9, 9, 9, 9, 7]), THREE[2]), "offsets and lengths of its table 0 do not agree"),
        ((-THREE[0], *THREE[1:]), "index -1 of its table 0 is negative"),
        (recording([[0, 0]], []), "no lookups"),
    ],
)
def test_other_content_is_refused(tmp_path, content, says):
    found, exit_code = refused(read_batch, save(tmp_path / "a.pt", content))
    assert (found.code, exit_code) == ("SH603", 2)
    assert says in found.message
    assert "torch.save" in found.help


def test_one_tensor_is_no_batch(tmp_path):
    found, _ = refused(read_batch, save(tmp_path / "a.pt", INDICES))
    assert "expected (indices, offsets, lengths), found one tensor" in found.message


def test_damaged_files_are_refused(tmp_path):
    save(tmp_path / "whole.pt", THREE)
    whole = (tmp_path / "whole.pt").read_bytes()
    packed = gzip.compress(whole)
    damage = {
        "torn.pt.gz": (packed[: len(packed) // 2], "it ends too early"),
        "head.pt.gz": (packed[:8], "it ends too early"),
        "sum.pt.gz": (packed[:-8] + b"1234" + packed[-4:], "gzip'd data is damaged"),
        "bits.pt.gz": (packed[:40] + b"\xff" * 20 + packed[60:], "gzip'd data is damaged"),
        "nothing.pt.gz": (gzip.compress(b""), "it is empty"),
        "empty.pt": (b"", "it is empty"),
        "torn.pt": (whole[:200], "damaged, or torch.save did not write it"),
        "other.pt": (b"not a tensor", "damaged, or torch.save did not write it"),
        "other.pt.gz": (gzip.compress(b"not a tensor"), "damaged, or torch.save did not write it"),
    }
    for name, (content, says) in damage.items():
        (tmp_path / name).write_bytes(content)
        found, exit_code = refused(read_batch, str(tmp_path / name))
        assert (found.code, exit_code, says in found.message) == ("SH603", 2, True), (name, found.message)
        assert "\n" not in found.message


def test_nothing_in_a_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "touched"),))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for path in (
        str(tmp_path / "evil.pt"),
        save(tmp_path / "zip.pt", (*THREE[:2], Evil())),
        save(tmp_path / "old.pt.gz", Evil(), _use_new_zipfile_serialization=False),
    ):
        found, _ = refused(read_batch, path)
        assert found.code == "SH603"
        assert "mkdir, and only tensors are loaded" in found.message
    assert not (tmp_path / "touched").exists()


# --- Size -------------------------------------------------------------------------------------------------------------


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(index_file, "UNPACKED_FLOOR", 2**22)
    (tmp_path / "bomb.pt.gz").write_bytes(gzip.compress(bytes(2**22 + 1)))
    found, _ = refused(read_batch, str(tmp_path / "bomb.pt.gz"))
    assert found.code == "SH603"
    assert "unpacks to more than" in found.message


def test_an_archive_that_torch_does_not_write_is_refused(tmp_path):
    whole = zipfile.ZipFile(save(tmp_path / "whole.pt", THREE))
    for name, method, more in (("deflated", zipfile.ZIP_DEFLATED, b""), ("large", zipfile.ZIP_STORED, bytes(2**20))):
        with zipfile.ZipFile(tmp_path / f"{name}.pt", "w", method) as archive:
            for record in whole.infolist():
                archive.writestr(record.filename, whole.read(record) + more * record.filename.endswith("data.pkl"))
        found, _ = refused(read_batch, str(tmp_path / f"{name}.pt"))
        assert "torch.save does not write such archives" in found.message


def test_a_large_file_in_the_old_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(index_file, "LEGACY_BYTES", 100)
    found, _ = refused(read_batch, save(tmp_path / "a.pt.gz", THREE, _use_new_zipfile_serialization=False))
    assert "torch 1.6" in found.message
    assert found.help == "torch.save what torch.load returns again"


def test_no_room_to_unpack(tmp_path, monkeypatch):
    path = save(tmp_path / "a.pt.gz", recording([[2**15]], torch.arange(2**15)))
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, limits[1]))
    try:
        found, exit_code = refused(read_batch, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (found.code, exit_code) == ("SH004", 2)
    assert "cannot unpack it to a temporary file: file too large" in found.message
    assert "TMPDIR" in found.help
    assert not list(room.iterdir())


def test_the_temporary_file_is_removed(tmp_path, monkeypatch):
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    read_batch(save(tmp_path / "a.pt.gz", THREE))
    refused(read_batch, save(tmp_path / "b.pt.gz", THREE[:2]))
    assert not list(room.iterdir())


PEAK = """
import sys
from shardc.measure.index_file import read_batch

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) // 1024

with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak starts again from here, torch being imported
before = memory("VmRSS")
assert len(read_batch(sys.argv[1]).tables) == 64
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory by Linux's means")
def test_memory_is_that_of_one_table(tmp_path):
    tables, lookups = 64, 100_000
    content = io.BytesIO()
    torch.save(recording([[lookups]] * tables, torch.arange(lookups).repeat(tables)), content)
    data = content.getvalue()
    assert len(data) > 50e6
    (tmp_path / "a.pt.gz").write_bytes(gzip.compress(data, 1))
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "a.pt.gz"], capture_output=True, check=True)
    assert int(done.stdout) < 20  # MiB, of 49


def test_bits_that_flipped_are_noticed(tmp_path):
    path = tmp_path / "f.pt"
    save(path, INDICES)
    content = bytearray(path.read_bytes())
    place = content.index(INDICES.numpy().tobytes())
    content[place + 6] ^= 64
    path.write_bytes(content)
    found, code = refused(read_bins, path, rows=10**12)
    assert (found.code, code) == ("SH603", 2)
    assert "its checksums are not those of its content" in found.message


def test_records_that_share_bytes_are_not_read_again_and_again(tmp_path):
    path = tmp_path / "f.pt"
    save(path, INDICES)
    with zipfile.ZipFile(path, "a") as archive:
        data = next(record for record in archive.filelist if "/data/" in record.filename)
        for number in range(1000):
            twin = zipfile.ZipInfo(f"{data.filename}{number}")
            twin.header_offset, twin.CRC = data.header_offset, data.CRC
            twin.file_size = twin.compress_size = data.file_size
            archive.filelist.append(twin)
        archive._didModify = True
    found, _ = refused(read_bins, path)
    assert "torch.save does not write such archives" in found.message
