"""What the verifier says of each fault, where in the spec it points, and what to do about it, in full."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from test_verify import (
    CLUSTER,
    KIND,
    LIMIT,
    SPEC,
    Edit,
    blocks,
    by_rows,
    check,
    columns,
    document,
    expected_memory,
    placed,
    replace,
    replicas,
    shard,
    table,
)

from shardc.diagnostics import Diagnostic
from shardc.passes.verify import ShardMemory, plan_cluster, shard_memory, too_many_devices, verify_alone, wide_caches
from shardc.plan import Plan
from shardc.problem import Memory
from shardc.spec import LoadedSpec, load_spec
from shardc.vocabulary import MAX_DEVICES

FULL = (
    SPEC.replace('optimizer = "rowwise_adagrad"', 'optimizer = "rowwise_adagrad"\nweights = "fp32"\noutputs = "fp32"')
    .replace('name = "ads"\nrows = 1000', 'name = "ads"\nrows = 1000\ndim = 16')
    .replace("devices_per_host = 2", 'devices_per_host = 2\nhost_memory = "1400KB"')
    .replace('name = "item"', 'name = "item"\nkernels = ["fused", "fused_uvm_caching"]\ncache_ratio = 0.25')
)
AGAIN = "compile the spec again"
HOSTED = dataclasses.replace(KIND, host_memory_bytes=700_000)
WITH_HOST = dataclasses.replace(CLUSTER, kinds=(HOSTED,))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedSpec:
    path: Path = tmp_path_factory.mktemp("spec") / "ranker.toml"
    path.write_text(FULL)
    return load_spec(path)


def sound() -> dict:
    """A plan of that spec without fault, its host memory stated."""
    content = document()
    for device in content["score"]["devices"]:
        device |= {"host_memory_bytes": 0, "host_memory_limit_bytes": 700_000}
    return content


def marked(finding: Diagnostic) -> str | None:
    """What of the spec a finding points to."""
    at = finding.location
    return at and at.text[at.column - 1 : at.column - 1 + at.length]


def said(finding: Diagnostic) -> tuple[str, str, str | None, str | None]:
    return finding.code, finding.message, marked(finding), finding.help


def test_the_plan_itself_has_no_fault(loaded: LoadedSpec) -> None:
    assert check(loaded, sound(), WITH_HOST) == []


def of_cluster(name: str, stated: object, wanted: object, marks: str) -> tuple[str, str, str, str]:
    return "SH309", f"the plan is for {name} = {stated}, the spec has {wanted}", marks, AGAIN


def of_model(name: str, stated: object, wanted: object) -> tuple[str, str, str, str]:
    return "SH310", f"the plan states {name} = {stated}, the spec has {wanted}", f"{wanted}", AGAIN


def of(name: str, fault: str) -> str:
    return f'table "{name}" of the plan: {fault}'


def asked(name: str, fault: str, marks: str) -> tuple[str, str, str, None]:
    return "SH308", f'table "{name}" {fault}', marks, None


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda c: c["cluster"].update(device="cpu"), [of_cluster("device", '"cpu"', '"gpu"', '"gpu"')]),
        (
            lambda c: c["cluster"].update(hosts=4, devices_per_host=1),
            [of_cluster("hosts", 4, 2, "2"), of_cluster("devices_per_host", 1, 2, "2")],
        ),
        (
            lambda c: c["cluster"].update(host_devices=["gpu", "cpu"]),
            [of_cluster("host_devices", "('gpu', 'cpu')", "()", "[cluster]")],
        ),
        (lambda c: c["model"].update(name="other"), [of_model("name", '"other"', '"ranker"')]),
        (lambda c: c["model"].update(global_batch=128), [of_model("global_batch", 128, 64)]),
        (lambda c: c["model"].update(optimizer="sgd"), [of_model("optimizer", '"sgd"', '"rowwise_adagrad"')]),
        (lambda c: c["model"].update(weights="fp16"), [of_model("weights", '"fp16"', '"fp32"')]),
        (lambda c: c["model"].update(outputs="bf16"), [of_model("outputs", '"bf16"', '"fp32"')]),
        (
            lambda c: c["plan"].update(other=dict(c["plan"]["ebc"])),
            [("SH304", 'the plan has tables of module "other", those of the spec are in "ebc"', '"ebc"', None)],
        ),
        (
            lambda c: c["plan"].update(ebc={"ghost": replicas()}),
            [("SH304", 'the plan, of the model "ranker", has none of the tables of "ranker"', '"ranker"', AGAIN)],
        ),
        (
            lambda c: [c["plan"]["ebc"].pop(name) for name in ("user", "visit")],
            [("SH304", 'the plan does not place tables "user", "visit"', "[[table]]", AGAIN)],
        ),
        (
            lambda c: c["plan"]["ebc"].update(ghost=replicas(), elf=replicas()),
            [("SH304", 'the plan places tables "elf", "ghost", which the spec does not have', None, AGAIN)],
        ),
        (
            replace("ads", placed("table_wise", (2, (0, 0), (999, 16)))),
            [("SH304", 'table "ads" is 999 x 16 in the plan, 1000 x 16 in the spec', "1000", None)],
        ),
        (
            replace("ads", placed("table_wise", (2, (0, 0), (1000, 20)))),
            [("SH304", 'table "ads" is 1000 x 20 in the plan, 1000 x 16 in the spec', "16", None)],
        ),
        (
            table("country", shape=None),
            [
                (
                    "SH304",
                    'table "country" is 200 x 16 in the spec, and the plan does not state its shape',
                    "[[table]]",
                    AGAIN,
                )
            ],
        ),
        (
            replace("ads", placed("table_wise", (2, (1, 0), (999, 16)))),
            [("SH305", of("ads", "its shards leave a gap: 15984 of 16000 elements are covered"), "[[table]]", None)],
        ),
        (
            replace("ads", placed("table_wise")),
            [
                ("SH305", of("ads", "the plan has no shards for it"), "[[table]]", None),
                ("SH306", of("ads", "table_wise has one shard, not 0"), "[[table]]", None),
            ],
        ),
        (
            table("country", shards=placed("", (0, (0, 0), (200, 16)))["shards"], ranks=[0, 2, 1, 3]),
            [
                ("SH306", of("country", fault), "[[table]]", None)
                for fault in ("data_parallel has no shards", "data_parallel is on every rank, in their order")
            ],
        ),
        (
            replace("item", columns((0, 64), (1, 0))),
            [("SH306", of("item", "shard 1 has 0 columns, not a multiple of 4"), "[[table]]", None)],
        ),
        (
            replace("page", blocks(3, 3, 2, 2)),
            [
                ("SH306", of("page", f"shard {fault}, as row_wise has them"), "[[table]]", None)
                for fault in ("2 is not 3 rows from row 6 and column 0", "3 is not 1 rows from row 9 and column 0")
            ],
        ),
        (
            # The ranks are in order, but begin in the middle of a host.
            replace("item", by_rows("grid_shard", (1, 0, 2500, 0, 64), (2, 2500, 2500, 0, 64))),
            [("SH306", of("item", "grid_shard has one shard on every rank of 2, in their order"), "[[table]]", None)],
        ),
        (
            replace("item", by_rows("row_wise", *((rank % 4, 625 * rank, 625, 0, 64) for rank in range(8)))),
            [("SH306", of("item", "row_wise has one shard on every rank of 4, not 8"), "[[table]]", None)],
        ),
        # What the spec asks for is in the table's own lines.
        (
            replace("country", placed("table_wise", (0, (0, 0), (200, 16)))),
            [asked("country", "is table_wise, which the spec does not allow", '["data_parallel", "row_wise"]')],
        ),
        (
            table("item", compute_kernel="fused_uvm_caching", cache_params={"load_factor": 0.3}),
            [asked("item", "caches 0.3 of its rows, the spec has 0.25", "0.25")],
        ),
        (
            replace("ads", placed("table_wise", (3, (0, 0), (1000, 16)))),
            [asked("ads", "is on device 3, but pinned to 1, 2", "[1, 2]")],
        ),
        (
            replace("visit", placed("table_wise", (2, (0, 0), (400, 16)))),
            [asked("visit", 'is not on the device of "user", of the same group', '"person"')],
        ),
        (
            replace("visit", blocks(100, 100, 100, 100)),
            [asked("visit", "is row_wise, but a group is placed whole on one device", '"person"')],
        ),
        (
            replace("item", columns((0, 32), (1, 32))),
            [asked("user", 'shares device 1 with "item", of the same apart set', '"hot"')],
        ),
        # What the plan states of its devices stands in no line of the spec.
        (
            lambda c: c["score"]["devices"].pop(),
            [("SH310", "the score does not list the devices 0 to 3 in order", None, None)],
        ),
        (
            lambda c: c["score"]["devices"][3].update(memory_limit_bytes=7),
            [("SH310", f"device 3 has memory_limit_bytes = 7 in the plan, truly {LIMIT}", None, None)],
        ),
        (
            lambda c: c["score"]["devices"][3].pop("host_memory_bytes"),
            [("SH310", "device 3 has host_memory_bytes = None in the plan, truly 0", None, None)],
        ),
    ],
)
def test_every_fault_is_told_in_full(loaded: LoadedSpec, edit: Edit, expected: list[tuple]) -> None:
    content = sound()
    edit(content)
    found = [said(finding) for finding in check(loaded, content, WITH_HOST)]
    of_memory = [finding for finding in found if "memory_bytes = " in finding[1]]
    assert found[: len(expected)] == expected
    # Shards of another size, or elsewhere, take other memory than the plan states; nothing else is said.
    assert all(finding in of_memory for finding in found[len(expected) :])


def test_names_that_differ_in_their_unicode_normalization_only_are_told(loaded: LoadedSpec) -> None:
    composed, decomposed = (normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    path = Path(loaded.path or "").with_name("normalized.toml")
    path.write_text(FULL.replace('name = "ads"', f'name = "{composed}"'), encoding="utf-8")
    content = sound()
    tables = content["plan"]["ebc"]
    tables[decomposed] = tables.pop("ads")
    missing, extra = check(load_spec(path), content, WITH_HOST)
    assert (missing.code, extra.code) == ("SH304", "SH304")
    said_so = f'{AGAIN}: spec and plan write table "{composed}" in different Unicode normalizations'
    assert missing.help == extra.help == said_so
    tables["ghost"] = tables.pop(decomposed)
    assert [finding.help for finding in check(load_spec(path), content, WITH_HOST)] == [AGAIN, AGAIN]


def test_a_kernel_that_the_spec_does_not_allow_points_to_the_kernels(loaded: LoadedSpec) -> None:
    only_cached = FULL.replace('kernels = ["fused", "fused_uvm_caching"]', 'kernels = ["fused_uvm_caching"]')
    path = Path(loaded.path or "").with_name("cached.toml")
    path.write_text(only_cached)
    found = [said(finding) for finding in check(load_spec(path), sound(), WITH_HOST)]
    assert found == [asked("item", "has the kernel fused, which the spec does not allow", '["fused_uvm_caching"]')]


def test_a_share_is_the_stated_one_to_six_digits(loaded: LoadedSpec) -> None:
    content = sound()
    table("item", compute_kernel="fused_uvm_caching", cache_params={"load_factor": 0.250001})(content)
    assert {finding.code for finding in check(loaded, content, WITH_HOST)} == {"SH310"}  # its memory is not stated
    table("item", cache_params={"load_factor": 0.25001})(content)
    found = check(loaded, content, WITH_HOST)
    assert found[0].message == 'table "item" caches 0.25001 of its rows, the spec has 0.25'


def test_a_table_alone_in_its_group_is_sharded_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "ranker.toml"
    path.write_text(FULL.replace('rows = 400\ngroup = "person"', 'rows = 400\ngroup = "alone"'))
    content = sound()
    content["plan"]["ebc"]["visit"] = blocks(100, 100, 100, 100)
    assert {finding.code for finding in check(load_spec(path), content, WITH_HOST)} == {"SH310"}


def test_groups_and_apart_sets_do_not_mind_each_other(tmp_path: Path) -> None:
    """Two of each: a table is held against those of its own group and of its own set."""
    path = tmp_path / "ranker.toml"
    more = '[[table]]\nname = "{}"\nrows = 10\n{} = "{}"\n'
    lines = [more.format("u1", "group", "g"), more.format("u2", "group", "g"), more.format("x1", "apart", "cold")]
    path.write_text(FULL + "".join(lines))
    content = sound()
    for name in ("u1", "u2", "x1"):
        content["plan"]["ebc"][name] = placed("table_wise", (0, (0, 0), (10, 16)))
    assert {finding.code for finding in check(load_spec(path), content, WITH_HOST)} == {"SH310"}


# --- Devices and hosts ------------------------------------------------------------------------------------------------


def over(content: dict, limit: int, kind: Memory) -> None:
    name = "memory_limit_bytes" if kind is Memory.DEVICE else "host_memory_limit_bytes"
    for device in content["score"]["devices"]:
        device[name] = limit


def test_a_full_device_is_within_its_limit_and_one_byte_more_is_not(loaded: LoadedSpec) -> None:
    most = max(expected_memory())
    for limit, expected in ((most, 0), (most - 1, 1)):
        content = sound()
        over(content, limit, Memory.DEVICE)
        kind = dataclasses.replace(HOSTED, memory_bytes=limit + 1000)
        found = check(loaded, content, dataclasses.replace(WITH_HOST, kinds=(kind,)))
        assert [finding.code for finding in found] == ["SH307"] * expected


def test_an_overfull_device_is_told_with_five_of_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "ranker.toml"
    path.write_text(FULL + "".join(f'[[table]]\nname = "t{n}"\nrows = {10 + n}\n' for n in range(4)))
    content = sound()
    for number in range(4):
        content["plan"]["ebc"][f"t{number}"] = placed("table_wise", (2, (0, 0), (10 + number, 16)))
    over(content, 40_000, Memory.DEVICE)
    cluster = dataclasses.replace(WITH_HOST, kinds=(dataclasses.replace(HOSTED, memory_bytes=41_000),))
    found = [finding for finding in check(load_spec(path), content, cluster) if finding.code == "SH307"]
    assert [finding.message.split(" needs")[0] for finding in found] == [f"device {rank}" for rank in range(4)]
    assert said(found[2]) == ("SH307", "device 2 needs 163 KiB, 124 KiB over its limit of 39.1 KiB", "[cluster]", None)
    tables = '"ads" (75.9 KiB), "country" (28.2 KiB), "t3" (10.4 KiB), "t2" (10.3 KiB), "t1" (10.2 KiB)'
    assert found[2].notes == (f"its largest tables: {tables}",)


def test_a_full_host_is_told_with_its_tables(loaded: LoadedSpec) -> None:
    content = sound()
    table("item", compute_kernel="fused_uvm_caching", cache_params={"load_factor": 0.25})(content)
    over(content, 600_000, Memory.HOST)
    less = dataclasses.replace(HOSTED, host_memory_bytes=600_000)
    found = [f for f in check(loaded, content, dataclasses.replace(WITH_HOST, kinds=(less,))) if f.code == "SH307"]
    message = "device 0 needs of its host's memory 625 KiB, 39.1 KiB over its limit of 586 KiB"
    assert said(found[0]) == ("SH307", message, '"1400KB"', None)
    assert found[0].notes == ('its largest tables: "item" (625 KiB)',)


def test_hosts_of_different_devices_are_told_apart(loaded: LoadedSpec) -> None:
    other = dataclasses.replace(HOSTED, device="larger")
    mixed = dataclasses.replace(WITH_HOST, kinds=(HOSTED, other), host_kind=(0, 1))
    stated = plan_cluster(mixed)
    assert (stated.device, stated.hosts, stated.devices_per_host) == ("gpu", 2, 2)
    assert stated.host_devices == ("gpu", "larger")
    assert plan_cluster(WITH_HOST).host_devices == ()
    single = dataclasses.replace(WITH_HOST, host_kind=(0,))
    assert plan_cluster(single).device == "gpu"
    content = sound()
    (found,) = check(loaded, content, mixed)
    assert found.message == "the plan is for host_devices = (), the spec has ('gpu', 'larger')"
    of_hosts = '[[cluster.host]]\nhosts = [1]\ndevice = "larger"\n\n[defaults]'
    path = Path(loaded.path or "").with_name("mixed.toml")
    path.write_text(FULL.replace("[defaults]", of_hosts))
    (found,) = check(load_spec(path), content, mixed)
    assert marked(found) == "[[cluster.host]]"


def test_a_device_that_takes_every_sample_apart_counts_whole_samples(tmp_path: Path) -> None:
    """62 samples on 4 devices: a replica serves 16 of them on some, and no device 15.5."""
    path = tmp_path / "ranker.toml"
    path.write_text(FULL.replace("global_batch = 64", "global_batch = 62"))
    content = sound()
    content["model"]["global_batch"] = 62
    plan = Plan.model_validate(content)
    memory, of_replica = shard_memory(plan, load_spec(path)), 200 * 16 * 8 + 200 * 4 + (16 + 32) * 8 + 2 * 16 * 16 * 4
    replicas = [size for name, size in zip(memory.table, memory.bytes[0].tolist(), strict=True) if name == "country"]
    assert replicas == [of_replica] * 4


def test_lookups_of_a_table_are_shared_by_its_features(tmp_path: Path) -> None:
    """Two features, of five lookups together: as many indices as of one with five, and twice as many outputs."""
    path = tmp_path / "ranker.toml"
    path.write_text(FULL.replace("rows = 400", 'rows = 400\nfeatures = ["a", "b"]\npooling = 5'))
    memory = shard_memory(Plan.model_validate(sound()), load_spec(path))
    (visit,) = [size for name, size in zip(memory.table, memory.bytes[0].tolist(), strict=True) if name == "visit"]
    samples = 64
    assert visit == 400 * 16 * 4 + 400 * 4 + (5 * samples + 2 * samples) * 8 + 2 * (2 * samples * 16 * 4)


# --- A plan without its spec ------------------------------------------------------------------------------------------


def test_a_plan_for_cpus_is_judged_as_one(loaded: LoadedSpec) -> None:
    content = sound()
    for placed_table in content["plan"]["ebc"].values():
        for piece in placed_table.get("shards", []):
            piece["placement"] = piece["placement"].split("/")[0] + "/cpu"
    assert verify_alone(Plan.model_validate(content)) == []
    table("item", compute_kernel="fused_uvm_caching", cache_params={"load_factor": 0.3})(content)
    (found,) = verify_alone(Plan.model_validate(content))
    assert found.message == 'table "item": column_wise needs the compute kernel fused, not fused_uvm_caching'
    shard("item", 0, placement="rank:3/cuda:1")(content)
    assert [finding.message for finding in verify_alone(Plan.model_validate(content))] == [
        found.message,
        'table "item": shard 0 has the placement "rank:3/cuda:1", expected "rank:3/cpu"',
    ]


def test_a_plan_for_more_devices_than_there_may_be_is_refused_at_once() -> None:
    content = document()
    content["cluster"] |= {"hosts": MAX_DEVICES, "devices_per_host": 1}
    assert too_many_devices(Plan.model_validate(content)) is None
    content["cluster"]["hosts"] += 1
    plan = Plan.model_validate(content)
    message = f"the plan is for {MAX_DEVICES + 1} devices, more than {MAX_DEVICES}"
    assert said(too_many_devices(plan)) == ("SH306", message, None, None)
    assert verify_alone(plan) == [too_many_devices(plan)]


# --- Caches of several widths -----------------------------------------------------------------------------------------

CACHED = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 4
weights = "{weights}"
[cluster]
device = "gpu"
devices_per_host = 2
host_memory = "1GB"
[defaults]
pooling = 1
kernels = ["fused_uvm_caching"]
"""


def shared_cache(tmp_path: Path, *tables: tuple[str, int, int, float, int], weights: str = "fp32") -> tuple:
    """A spec of tables by name, rows, dim, cached share and rank, and a plan that has them there."""
    lines = [f'[[table]]\nname = "{n}"\nrows = {r}\ndim = {d}\ncache_ratio = {c}\n' for n, r, d, c, _ in tables]
    path = tmp_path / "m.toml"
    path.write_text(CACHED.format(weights=weights) + "".join(lines))
    content = document()
    content["cluster"] = {"device": "gpu", "hosts": 1, "devices_per_host": 2}
    content["plan"]["ebc"] = {
        name: placed("table_wise", (rank, (0, 0), (rows, dim)))
        | {"compute_kernel": "fused_uvm_caching", "cache_params": {"load_factor": ratio}}
        for name, rows, dim, ratio, rank in tables
    }
    return Plan.model_validate(content), load_spec(path)


def doubts(plan: Plan, spec: LoadedSpec, room: int) -> list[Diagnostic]:
    kind = dataclasses.replace(HOSTED, memory_bytes=1000 + int(shard_memory(plan, spec).by_device(2)[0, 1]) + room)
    return wide_caches(plan, spec, dataclasses.replace(WITH_HOST, kinds=(kind,), host_kind=(0,)))


@pytest.mark.parametrize(("weights", "size"), [("fp32", 4), ("fp16", 2)])
def test_narrow_tables_beside_a_wide_one_take_its_width_in_the_cache(tmp_path: Path, weights: str, size: int) -> None:
    tables = (("narrow", 10_000, 16, 0.25, 1), ("narrower", 1_000, 8, 0.5, 1), ("wide", 100, 64, 0.1, 1))
    plan, spec = shared_cache(tmp_path, *tables, weights=weights)
    more = size * (2500 * 48 + 500 * 56)
    assert doubts(plan, spec, more) == []
    (warning,) = doubts(plan, spec, more - 2048)
    needs = {4: "device 1 may need 578 KiB more", 2: "device 1 may need 289 KiB more"}[size]
    assert said(warning) == (
        "SH511",
        "cached tables of different widths share a cache as wide as the widest: "
        f"{needs} than is counted, 2 KiB over its limit",
        "[cluster]",
        "cache tables of one dim, lower cache_ratio, or raise the reserve",
    )
    assert warning.severity == "warning"
    assert [found.message.partition("counted, ")[2] for found in doubts(plan, spec, more - 1)] == ["1 B over its limit"]


def test_every_operator_of_a_device_has_a_cache_of_its_own(tmp_path: Path) -> None:
    tables = [
        (f"{name}{n}", rows, dim, 0.5, 1) for n in "ab" for name, rows, dim in (("narrow", 1000, 8), ("w", 10, 64))
    ]
    plan, spec = shared_cache(tmp_path, *tables)
    content = plan.model_dump(mode="json", by_alias=True)
    for name in ("narrowb", "wb"):
        content["plan"]["ebc"][name]["sharding_type"] = "column_wise"
    more = 2 * 4 * 500 * 56
    plan = Plan.model_validate(content)
    assert doubts(plan, spec, more) == []
    assert "may need 219 KiB more than is counted, 1 B over" in doubts(plan, spec, more - 1)[0].message


def test_bytes_of_devices_are_whole_numbers_whatever_their_size() -> None:
    large = 2**53 + 1
    shards = ShardMemory(("a", "b", "c"), np.array([1, 1, 0]), np.array([[large, 2, 5], [0, 3, large]]))
    assert shards.by_device(3).tolist() == [[5, large + 2, 0], [large, 3, 0]]


def test_tables_that_share_no_cache_are_as_wide_as_they_are(tmp_path: Path) -> None:
    apart = (("narrow", 10_000, 16, 0.25, 1), ("wide", 100, 64, 0.1, 0))
    assert doubts(*shared_cache(tmp_path, *apart), 0) == []
    alike = (("narrow", 10_000, 64, 0.25, 1), ("wide", 100, 64, 0.1, 1))
    assert doubts(*shared_cache(tmp_path, *alike), 0) == []
    # An operator for each sharding type, and a cache for each operator.
    plan, spec = shared_cache(tmp_path, ("narrow", 10_000, 16, 0.25, 1), ("wide", 100, 64, 0.1, 1))
    content = plan.model_dump(mode="json", by_alias=True)
    content["plan"]["ebc"]["wide"] |= {"sharding_type": "column_wise"}
    assert doubts(Plan.model_validate(content), spec, 0) == []
    # Nor is there one of tables that are on the device whole; and a device too full anyway is no matter of caches.
    content["plan"]["ebc"]["wide"] |= {"sharding_type": "table_wise", "compute_kernel": "fused", "cache_params": None}
    assert doubts(Plan.model_validate(content), spec, 0) == []
    assert doubts(*shared_cache(tmp_path, *alike), -10) == []
