"""`shardc import dlrm`, from a file of recorded lookups to a plan."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from shardc.access import histograms
from shardc.measure.index_file import read_batch
from shardc.measure.streams import draw_indices
from shardc.passes.place import EVALUATIONS
from shardc.spec import Bins, Zipf, load_spec

BATCH, ROWS, POOLING = 512, (100, 5000, 300_000), (1.0, 0.0, 7.5)


@pytest.fixture
def shardc_(tmp_path, monkeypatch, run_command):
    """Run a command in a folder with a file of three tables, the second without lookups, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EVALUATIONS, "balanced", 100)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.stack([torch.poisson(torch.full((BATCH,), mean), generator=generator).long() for mean in POOLING])
    indices = [
        draw_indices(Zipf(1.0), rows, int(own.sum()), generator).long()
        for rows, own in zip(ROWS, lengths, strict=True)
        if own.any()
    ]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
    with gzip.open("lookups.pt.gz", "wb") as file:
        torch.save((torch.cat(indices), offsets, lengths), file)

    return run_command


@pytest.mark.parametrize("command", ["import", "import dlrm"])
def test_there_is_help(shardc_, command):
    done = shardc_(*command.split(), "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: shardc {command}")


@pytest.mark.parametrize(("recording", "output"), [("m.toml", "m.toml"), ("m.tables.csv", "m.toml")])
def test_the_recording_is_not_replaced(shardc_, recording, output):
    os.rename("lookups.pt.gz", recording)
    before = Path(recording).read_bytes()
    done = shardc_("import", "dlrm", recording, "-o", output, "--force")
    assert (done.code, done.err.partition(":")[0]) == (2, f"SH902 {recording} is the recording itself")
    assert Path(recording).read_bytes() == before


def test_a_recorded_batch_becomes_a_spec_that_compiles(shardc_):
    done = shardc_("import", "dlrm", "lookups.pt.gz")
    assert done.code == 0
    assert done.out.endswith("\nspec written to lookups.toml, its tables to lookups.tables.csv\n")
    loaded = load_spec("lookups.toml")
    assert (loaded.spec.model.global_batch, loaded.spec.cluster.devices) == (BATCH, 8)
    assert [table.name for table in loaded.tables] == ["table_0", "table_2"]
    first, _, third = read_batch("lookups.pt.gz").tables
    for table, recorded in zip(loaded.tables, (first, third), strict=True):
        assert (table.rows, table.dim) == (recorded.rows, 128)
        assert table.pooling == pytest.approx(recorded.lookups / BATCH, rel=1e-3)
        assert isinstance(table.access, Bins)
        assert table.access.shares == pytest.approx(recorded.bins.shares, rel=1e-3)
    os.remove("lookups.pt.gz")  # the spec stands for itself
    assert shardc_("validate", "lookups.toml").code == 0
    assert shardc_("compile", "lookups.toml", "--quiet").code == 0
    with open("lookups.plan.json") as plan:
        assert set(json.load(plan)["plan"]["sparse_arch.embedding_bag_collection"]) == {"table_0", "table_2"}


def test_rare_but_hot_rows_keep_their_share_of_the_lookups(shardc_):
    """One row of 100,000 with half of the lookups is a share of 1e-5, which rounding must not lose."""
    indices = torch.cat([torch.arange(100_000), torch.full((100_000,), 7)])
    torch.save((indices, torch.tensor([0, len(indices)]), torch.tensor([[len(indices)]])), "hot.pt")
    assert shardc_("import", "dlrm", "hot.pt", "-q").code == 0
    (table,) = load_spec("hot.toml").tables
    unique = histograms([table.access], np.array([1e9]), np.array([table.pooling])).unique
    assert unique == pytest.approx([100_000], rel=0.4)  # a bin's mean count stands for all of it


def test_the_spec_says_where_it_comes_from_and_what_it_does_not_know(shardc_):
    shardc_("import", "dlrm", "lookups.pt.gz", "-q")
    with open("lookups.toml") as spec:
        about = spec.read().partition("format")[0]
    assert about.startswith("# 2 tables of lookups.pt.gz, one recorded batch of 512 samples; left out: 1 table without")
    assert "a lower bound" in about


def test_options_of_the_spec(shardc_):
    options = ["--dim=64", "--device=a100-80gb", "--hosts=2", "--devices-per-host=4", "-o", "other.toml", "-q"]
    done = shardc_("import", "dlrm", "lookups.pt.gz", *options)
    assert (done.code, done.out, done.err) == (0, "", "")
    loaded = load_spec("other.toml")
    assert {table.dim for table in loaded.tables} == {64}
    cluster = loaded.spec.cluster
    assert (cluster.device, cluster.hosts, cluster.devices_per_host) == ("a100-80gb", 2, 4)


def test_stdout_holds_the_whole_spec(shardc_, tmp_path):
    shardc_("import", "dlrm", "lookups.pt.gz", "-q")
    done = shardc_("import", "dlrm", "lookups.pt.gz", "-o", "-")
    (tmp_path / "whole.toml").write_text(done.out)
    assert load_spec("whole.toml").tables == load_spec("lookups.toml").tables
    assert not (tmp_path / "-.tables.csv").exists()


@pytest.mark.parametrize("there", ["lookups.toml", "lookups.tables.csv"])
def test_files_are_not_replaced_unasked(shardc_, tmp_path, there):
    (tmp_path / there).write_text("mine")
    done = shardc_("import", "dlrm", "lookups.pt.gz")
    assert (done.code, done.err.splitlines()[0]) == (2, f"SH004 cannot write {there}: it is there already")
    assert (tmp_path / there).read_text() == "mine"
    assert shardc_("import", "dlrm", "lookups.pt.gz", "--force").code == 0
    assert (tmp_path / there).read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("lookups.pt.gz --dim 6", "SH104 defaults.dim: expected a multiple of 4"),
        ("lookups.pt.gz --hosts 0", "SH104 cluster.hosts: expected at least 1"),
        ("lookups.pt.gz --device h100", "SH107 unknown device"),
        ("lookups.pt.gz -o none/x.toml", "SH004 cannot write none/x.toml: no such folder"),
        ("lookups.pt.gz -o .", "SH004 cannot write .: is a directory"),
        ("none.pt", "SH001 index file none.pt: no such file"),
        (".", "SH002 index file .: is a directory"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(shardc_, tmp_path, arguments, says):
    done = shardc_("import", "dlrm", *arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(says)
    assert [path.name for path in tmp_path.iterdir()] == ["lookups.pt.gz"]
