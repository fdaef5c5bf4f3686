import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import shardc
from shardc.diagnostics import DiagnosticError
from shardc.hardware import PROFILES, load_hardware
from shardc.problem import Collective, Link
from shardc.profile_folder import CollectiveFit, MeasuredCollectives, read_profile, save_collectives, save_profile

A2A, REDUCE = Collective.ALL_TO_ALL, Collective.ALL_REDUCE


@pytest.fixture
def folder(tmp_path) -> Path:
    """A measured profile whose collectives nobody has measured, as earlier versions wrote it."""
    source = next(path.parent for path in sorted(PROFILES.glob("*/profile.json")))
    document = json.loads((source / "profile.json").read_text())
    for member in ("network_latency_ms", "intra_host", "inter_host"):
        document.pop(member, None)
    document |= {"communication": "assumed", "latency_ms": 0.5, "intra_host_bandwidth": 5e9}
    document |= {"inter_host_bandwidth": 1.25e9}
    (tmp_path / "profile.json").write_text(json.dumps(document))
    shutil.copy(source / "weights.safetensors", tmp_path)
    return tmp_path


def collectives(hosts: int, **fits: tuple[float, float]) -> MeasuredCollectives:
    return MeasuredCollectives(
        world_size=2 * hosts,
        hosts=hosts,
        backend="gloo",
        versions={"torch": "2.13.0"},
        message_bytes=(4096, 2**24),
        fits={
            Collective(name): CollectiveFit(latency_ms=latency, bandwidth=bandwidth, mean_relative_error=0.1)
            for name, (latency, bandwidth) in fits.items()
        },
    )


def test_a_profile_without_collectives_is_read_and_has_the_links_figures(folder):
    hardware = load_hardware(str(folder))
    assert (hardware.latency_ms, hardware.network_latency_ms) == (0.5, 0.0)
    assert (hardware.intra_host, hardware.inter_host) == ({}, {})


def test_measured_collectives_take_the_place_of_assumptions(folder):
    before = load_hardware(str(folder))
    save_collectives(folder, collectives(1, all_to_all=(0.25, 1e9), all_reduce=(0.4, 8e8)))
    document, hardware = read_profile(folder), load_hardware(str(folder))
    assert (document.format, document.communication) == (1, "measured")
    assert hardware.intra_host == {A2A: Link(0.25, 1e9), REDUCE: Link(0.4, 8e8)}
    assert hardware.inter_host == {}
    # What was not measured goes by the all-to-all: the same link, and the same way to time it.
    assert (hardware.latency_ms, hardware.intra_host_bandwidth) == (0.25, 1e9)
    assert hardware.inter_host_bandwidth == before.inter_host_bandwidth
    assert hardware.digest != before.digest
    assert hardware.measured == before.measured


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_both_kinds_of_links_are_kept_in_whatever_order_they_are_measured(folder, order):
    found = {1: collectives(1, all_to_all=(0.25, 1e9)), 2: collectives(2, all_to_all=(0.75, 1e8))}
    for hosts in order:
        save_collectives(folder, found[hosts])
    hardware = load_hardware(str(folder))
    assert (hardware.latency_ms, hardware.network_latency_ms) == (0.25, 0.5)
    assert (hardware.intra_host_bandwidth, hardware.inter_host_bandwidth) == (1e9, 1e8)
    assert hardware.inter_host == {A2A: Link(0.75, 1e8)}


def test_a_collective_that_the_backend_lacks_goes_by_what_was_assumed(folder):
    save_collectives(folder, collectives(1, all_reduce=(0.4, 8e8)))
    hardware = load_hardware(str(folder))
    assert (hardware.latency_ms, hardware.intra_host_bandwidth) == (0.5, 5e9)
    assert hardware.intra_host == {REDUCE: Link(0.4, 8e8)}


def remade(folder: Path, **measured) -> None:
    """Write the folder's profile again, as more sets of tables would."""
    import safetensors.numpy

    document = json.loads((PROFILES / "cpu-epyc" / "profile.json").read_text())
    document["measured"] |= measured
    for member in ("weights_digest", "intra_host", "inter_host"):
        document.pop(member, None)
    document |= {"communication": "assumed", "latency_ms": 0.5, "network_latency_ms": 0.0}
    save_profile(folder, document, safetensors.numpy.load_file(folder / "weights.safetensors"))


def test_a_profile_that_is_made_again_keeps_its_collectives(folder):
    save_collectives(folder, collectives(1, all_to_all=(0.25, 1e9)))
    before = read_profile(folder)
    remade(folder, sets=12345)
    after = read_profile(folder)
    assert after.measured.sets == 12345
    assert (after.intra_host, after.communication, after.latency_ms) == (before.intra_host, "measured", 0.25)
    remade(folder, device="another one")
    assert read_profile(folder).intra_host is None


@pytest.mark.parametrize(
    "change",
    [
        {"intra_host": {"world_size": 2}},
        {"network_latency_ms": -1.0},
        {"intra_host": {**collectives(1).model_dump(), "fits": {"broadcast": {}}}},
        {"inter_host": {**collectives(2).model_dump(), "world_size": 1}},
    ],
)
def test_damaged_collectives_are_named(folder, change):
    document = json.loads((folder / "profile.json").read_text()) | change
    (folder / "profile.json").write_text(json.dumps(document))
    with pytest.raises(DiagnosticError, match=f"SH601.*{next(iter(change))}"):
        load_hardware(str(folder))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("intra_host_bandwidth",), 5e-324),
        (("inter_host_bandwidth",), 1e308),
        (("host_bandwidth",), 1e-3),
        (("latency_ms",), 1e300),
        (("intra_host", "fits", "all_to_all", "bandwidth"), 5e-324),
        (("intra_host", "fits", "all_to_all", "latency_ms"), 1e300),
        (("measured", "batch"), [-5, -9]),
        (("measured", "batch"), [9, 5]),
        (("measured", "rows"), [1, 10**400]),
        (("measured", "reference_ms"), [1e-320, 1e-320]),
        (("measured", "errors", "margins"), {"0.9": [1e308, 1e308]}),
        (("measured", "errors", "mean_relative_error"), [1e308, 0.1]),
    ],
)
def test_figures_that_no_machine_has_are_named(folder, where, value):
    save_collectives(folder, collectives(1, all_to_all=(0.25, 1e9)))
    document = json.loads((folder / "profile.json").read_text())
    member = document
    for name in where[:-1]:
        member = member[name]
    member[where[-1]] = value
    (folder / "profile.json").write_text(json.dumps(document))
    with pytest.raises(DiagnosticError, match=rf"SH601.*profile.json: {'.'.join(where)}.*"):
        load_hardware(str(folder))


def test_a_folder_without_a_profile_is_no_unknown_device(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DiagnosticError, match=r"SH601 hardware profile .*mine: there is no profile.json in it"):
        load_hardware("mine", base=str(tmp_path))
    with pytest.raises(DiagnosticError, match="SH107 unknown device"):
        load_hardware("表" * 200, base=str(tmp_path))


def test_data_sheets_expect_more_of_the_network():
    hardware = load_hardware("h100-80gb")
    assert 0 < hardware.network_latency_ms < hardware.latency_ms
    assert (hardware.intra_host, hardware.inter_host) == ({}, {})


def seal(folder):
    """Let profile.json name the weights beside it."""
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    document = json.loads((folder / "profile.json").read_text()) | {"weights_digest": f"sha256:{digest}"}
    (folder / "profile.json").write_text(json.dumps(document))


def test_weights_that_lack_an_array_are_damaged(folder):
    import safetensors.numpy

    weights = safetensors.numpy.load_file(folder / "weights.safetensors")
    del weights["fixed"]
    safetensors.numpy.save_file(weights, folder / "weights.safetensors")
    seal(folder)
    with pytest.raises(DiagnosticError, match=r"SH602.*does not hold a cost model"):
        load_hardware(str(folder))


def test_weights_of_a_type_that_numpy_lacks_are_damaged(folder):
    header = json.dumps({"fixed": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (folder / "weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    seal(folder)
    with pytest.raises(DiagnosticError, match=r"SH602.*BF16"):
        load_hardware(str(folder))


def changed_weights(folder, change):
    import safetensors.numpy

    path = folder / "weights.safetensors"
    safetensors.numpy.save_file(
        {name: change(name, array) for name, array in safetensors.numpy.load_file(path).items()}, path
    )
    seal(folder)


@pytest.mark.parametrize("factor", [1e6, 1e30, 1e300])
def test_weights_that_no_training_ends_with_are_refused(folder, factor):
    changed_weights(folder, lambda name, array: array.astype(np.float64) * factor)
    with pytest.raises(DiagnosticError, match=r"SH602.*beyond 10000, which no training ends with"):
        load_hardware(str(folder))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "change",
    [
        lambda name, array: array * 0 if name in ("scale", "pieces", "fixed") else array,
        lambda name, array: np.full_like(array, 1e4) if name != "mean" else array,
    ],
)
def test_weights_that_make_no_times_are_refused(folder, change):
    changed_weights(folder, change)
    cluster = {"device": str(folder), "devices_per_host": 2}
    model = {"name": "m", "module": "sparse", "global_batch": 4096}
    spec = {
        "format": 1,
        "model": model,
        "cluster": cluster,
        "table": [{"name": "t", "rows": 1000, "dim": 64, "pooling": 1}],
    }
    with pytest.raises(DiagnosticError, match=r"SH602 hardware profile .*: by its weights, the tables would take"):
        shardc.compile(spec)
