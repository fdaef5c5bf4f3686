import gzip
import pickle

import numpy as np
import pytest
import torch

from shardc.diagnostics import DiagnosticError, Location
from shardc.measure.index_file import read_bins
from shardc.measure.streams import draw_indices
from shardc.spec import Zipf

AT = Location("model.toml", 3, 10, 5, "access")


def save(path, content):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as file:
        torch.save(content, file)
    return str(path)


def fault(path, rows=1000):
    with pytest.raises(DiagnosticError) as caught:
        read_bins(str(path), rows, 1e9, AT)
    (found,) = caught.value.diagnostics
    assert found.location == AT
    return found


# Row 7 is looked up once, 8 twice, 9 three times, 10 four times, 11 five times and 0 seventeen times.
INDICES = torch.tensor([7] + [8] * 2 + [9] * 3 + [10] * 4 + [11] * 5 + [0] * 17)
SIXTHS = (1, 1, 2, 1, 0, 1, *[0] * 11)


@pytest.mark.parametrize("name", ["cat.pt", "cat.pt.gz"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bins_are_shares_of_unique_rows_by_access_count(tmp_path, name, dtype):
    bins = read_bins(save(tmp_path / name, INDICES.to(dtype)[torch.randperm(len(INDICES))]), 12, 1e9)
    assert bins.shares == pytest.approx([share / 6 for share in SIXTHS])


def test_edges_belong_to_the_bin_below(tmp_path):
    path = save(tmp_path / "a.pt", torch.repeat_interleave(torch.tensor([32768, 32769, 1])))
    assert np.array(read_bins(path, 3, 1e9).shares)[[0, 15, 16]] == pytest.approx([1 / 3] * 3)


def test_the_public_dataset_form_is_read(tmp_path):
    lengths = torch.tensor([len(INDICES)])
    path = save(tmp_path / "a.pt.gz", (INDICES, torch.tensor([0, len(INDICES)]), lengths))
    assert read_bins(path, 12, 1e9).shares == pytest.approx([share / 6 for share in SIXTHS])


def test_a_missing_file_is_named(tmp_path):
    found = fault(tmp_path / "none.pt")
    assert (found.code, str(tmp_path / "none.pt") in found.message) == ("SH001", True)


@pytest.mark.parametrize(
    "content",
    [
        torch.tensor([1.5, 2.0]),
        torch.tensor([], dtype=torch.int64),
        torch.tensor(3),
        torch.zeros((2, 2), dtype=torch.int64),
        torch.tensor([True]),
        {"indices": INDICES},
        [],
        "text",
        [INDICES.tolist()],
    ],
    ids=["floats", "empty", "scalar", "matrix", "booleans", "mapping", "nothing", "text", "lists"],
)
def test_other_content_is_refused(tmp_path, content):
    found = fault(save(tmp_path / "a.pt", content))
    assert found.code == "SH603"
    assert "torch.save" in (found.help or "")


def test_damaged_files_are_refused(tmp_path):
    save(tmp_path / "whole.pt", INDICES)
    whole = gzip.compress((tmp_path / "whole.pt").read_bytes())
    for name, content in {
        "torn.pt.gz": whole[: len(whole) // 2],
        "other.pt.gz": b"not gzip",
        "other.pt": b"not a tensor",
        "empty.pt": b"",
        "torn.pt": (tmp_path / "whole.pt").read_bytes()[:200],
    }.items():
        (tmp_path / name).write_bytes(content)
        found = fault(tmp_path / name)
        assert found.code == "SH603", name
        assert "\n" not in found.message, name
    assert fault(tmp_path).code == "SH603"  # a folder


def test_nothing_in_a_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("touched").touch, ())

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    save(tmp_path / "evil2.pt", Evil())
    assert fault(tmp_path / "evil.pt").code == "SH603"
    assert fault(tmp_path / "evil2.pt").code == "SH603"
    assert not (tmp_path / "touched").exists()


def test_an_index_outside_the_table_is_named(tmp_path):
    path = save(tmp_path / "a.pt", INDICES)
    assert "11 is outside the table's 11 rows" in fault(path, rows=11).message
    assert "index -2 is outside" in fault(save(tmp_path / "b.pt", torch.tensor([5, -2]))).message


def test_a_recording_of_many_steps_is_thinned_to_one(tmp_path):
    """Bins are of one step: 32 steps recorded together must not make every row look popular."""
    generator = torch.Generator().manual_seed(0)
    steps = [draw_indices(Zipf(0.9), 100_000, 8192, generator) for _ in range(32)]
    one = read_bins(save(tmp_path / "one.pt", steps[0]), 100_000, 8192)
    many = read_bins(save(tmp_path / "many.pt", torch.cat(steps)), 100_000, 8192)
    assert np.abs(np.array(one.shares) - np.array(many.shares)).max() < 0.03
