"""What keeps a plan from being loaded: TorchRec would train such plans wrong, or fail far from the cause."""

import copy
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed")

from test_round_trip import cpu, cuda, document, every_type  # noqa: E402
from torchrec import (  # noqa: E402
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
)
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.types import ShardingPlan  # noqa: E402
from torchrec.modules.embedding_configs import DataType  # noqa: E402

from shardc.diagnostics import DiagnosticError  # noqa: E402
from shardc.frameworks.torchrec import load_plan  # noqa: E402
from shardc.plan import Plan  # noqa: E402

META = torch.device("meta")
SIZES = {"tw": (10, 8), "cw": (10, 20), "twcw": (7, 8), "rw": (10, 8), "twrw": (10, 8), "grid": (10, 8), "dp": (5, 8)}


def collection(sizes: dict[str, tuple[int, int]] = SIZES, **more: object) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(rows, dim, name=name, feature_names=[name], **more) for name, (rows, dim) in sizes.items()
    ]
    return EmbeddingBagCollection(tables, device=META)


def model(**children: torch.nn.Module) -> torch.nn.Module:
    whole = torch.nn.Module()
    for name, child in children.items():
        whole.add_module(name, child)
    return whole


def findings(plan: Plan, *arguments: object, **more: object) -> list[tuple[str, str]]:
    with pytest.raises(DiagnosticError) as raised:
        load_plan(plan, *arguments, **more)
    assert raised.value.exit_code == 2
    return [(finding.code, finding.message) for finding in raised.value.diagnostics]


def changed(change: Callable[[dict], None], placement: Callable[[int], str] = cuda) -> Plan:
    """The plan with a table of every type, after a change to its tables."""
    content = document(every_type(), placement).model_dump()
    change(content["plan"]["a.b"])
    return Plan.model_validate(content)


# --- The plan by itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_type", ["tpu", "mtia", "CPU", "cuda:0", ""])
def test_other_kinds_of_devices_are_refused(device_type):
    ((code, message),) = findings(document(every_type(), cuda), device_type)
    assert code == "SH104"
    assert f'"{device_type}"' in message


@pytest.mark.parametrize("device_type", ["cpu", "cuda", None])
def test_a_plan_for_gpus_is_built_without_any(device_type):
    whole = model(a=model(b=collection()))
    assert isinstance(load_plan(document(every_type(), cuda), device_type, model=whole), ShardingPlan)


def shard(table: str, number: int, **members: object) -> Callable[[dict], None]:
    def change(tables: dict) -> None:
        tables[table]["shards"] = [
            each | members if i == number else each for i, each in enumerate(tables[table]["shards"])
        ]

    return change


def uneven(tables: dict) -> None:
    """Blocks of 2, 3, 3 and 2 rows, where TorchRec counts on 3, 3, 3 and 1."""
    starts = (0, 2, 5, 8, 10)
    for number, each in enumerate(tables["rw"]["shards"]):
        each["shard_offsets"], each["shard_sizes"] = (starts[number], 0), (starts[number + 1] - starts[number], 8)


def empty_block(tables: dict) -> None:
    """Five rows on four ranks: blocks of two leave the last one nothing."""
    for number, each in enumerate(tables["rw"]["shards"]):
        first = min(5, 2 * number)
        each["shard_offsets"], each["shard_sizes"] = (first, 0), (min(2, 5 - first), 8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (uneven, 'table "rw": shard 0 is not 3 rows from row 0'),
        (empty_block, 'table "rw": shard 3 has no rows'),
        (shard("tw", 0, placement="rank:3/cuda:1"), 'table "tw": shard 0 has the placement "rank:3/cuda:1"'),
        (shard("tw", 0, placement="rank:1/cuda:0"), 'expected "rank:1/cuda:1"'),
        (shard("tw", 0, placement="rank:1/cpu"), "shard"),
        (shard("cw", 1, placement="rank:3/cuda:1"), 'table "cw": shard 1 has the placement'),
        (shard("cw", 0, shard_sizes=(10, 4)), 'table "cw": its shards leave a gap'),
        (shard("cw", 1, shard_offsets=(0, 4)), 'table "cw": shards 0 and 1 overlap'),
        (shard("twrw", 0, shard_sizes=(4, 8)), 'table "twrw"'),
        (lambda tables: tables["tw"].update(ranks=(9,)), 'table "tw": rank 9 is none of the 4 devices'),
        (lambda tables: tables["tw"].update(ranks=(1, 2)), "not as many ranks (2) as shards (1)"),
        (lambda tables: tables["cw"].update(ranks=(0, 3)), 'table "cw": shard 0 has the placement'),
        (lambda tables: tables["dp"].update(ranks=(0, 1, 2)), "data_parallel is on every rank"),
        (lambda tables: tables["dp"].update(compute_kernel="fused"), "data_parallel needs the compute kernel dense"),
        (lambda tables: tables["tw"].update(compute_kernel="dense"), "table_wise needs the compute kernel fused"),
        (lambda tables: tables["twcw"].update(sharding_type="column_wise", ranks=(1, 1)), 'table "twcw"'),
        (lambda tables: tables["cw"].update(sharding_type="table_column_wise"), "keeps to one host"),
    ],
)
def test_plans_that_torchrec_would_train_wrong(change, reason):
    found = findings(changed(change))
    assert {code for code, _ in found} <= {"SH305", "SH306"}
    assert any(reason in message for _, message in found)
    assert all(message.startswith('module "a.b", table "') for _, message in found)


def test_all_faults_of_a_plan_are_told_at_once():
    def change(tables: dict) -> None:
        uneven(tables)
        tables["dp"]["ranks"] = (0,)
        tables["tw"]["compute_kernel"] = "dense"

    found = findings(changed(change))
    assert {message.split('"')[3] for _, message in found} == {"dp", "rw", "tw"}


# --- The plan and the model -------------------------------------------------------------------------------------------


def test_a_model_that_is_the_plans():
    whole = model(a=model(b=collection()), dense=torch.nn.Linear(2, 2))
    assert load_plan(document(every_type(), cpu), model=whole).plan.keys() == {"a.b"}
    assert all(parameter.is_meta for parameter in whole.a.b.parameters())


def test_what_is_no_model():
    plan = document(every_type(), cuda)
    assert findings(plan, model="x") == [("SH103", "expected a model (torch.nn.Module), found a str")]


def test_everything_that_differs_is_told_at_once():
    sizes = SIZES | {"tw": (11, 8), "cw": (10, 24), "new": (3, 4)}
    del sizes["rw"]
    whole = model(a=model(b=collection(sizes, data_type=DataType.FP16)), other=collection({"x": (4, 4), "y": (4, 4)}))
    found = findings(document(every_type(), cuda), model=whole)
    assert {code for code, _ in found} == {"SH610"}
    kinds = [message for _, message in found if "weights" not in message]
    assert kinds == [
        'module "other": expected 2 tables in the plan, found none',
        'module "a.b", table "new": expected in the plan, found not',
        'module "a.b", table "tw": expected rows = 10 as in the plan, found 11 in the model',
        'module "a.b", table "cw": expected dim = 20 as in the plan, found 24 in the model',
        'module "a.b", table "rw": expected in the model, found not',
    ]
    dtypes = [message for _, message in found if "weights" in message]
    assert dtypes[0] == 'module "a.b", table "tw": expected fp32 weights as in the plan, found fp16 in the model'
    assert len(dtypes) == len(every_type()) - 1


def test_replicas_of_another_shape():
    """SIZES has 5 x 8; a plan without shapes leaves the model's be."""
    own = model(a=model(b=collection()))
    for shape, differs in ((None, []), ([5, 8], []), ([6, 8], ["rows = 6"]), ([6, 4], ["rows = 6", "dim = 4"])):
        plan = changed(lambda tables, shape=shape: tables["dp"].update(shape=shape))
        if shape is None:
            with pytest.warns(UserWarning, match='does not say how large table "dp" may be') as caught:
                assert load_plan(plan, model=own)
            assert caught[0].filename == __file__
            continue
        if not differs:
            assert load_plan(plan, model=own)
            continue
        found = findings(plan, model=own)
        assert len(found) == len(differs)
        for (code, message), said in zip(found, differs, strict=True):
            assert code == "SH610"
            assert message.startswith(f'module "a.b", table "dp": expected {said} as in the plan')


def test_a_module_that_is_not_there():
    ((_, message),) = [
        each for each in findings(document(every_type(), cuda), model=model(b=collection())) if '"a.b"' in each[1]
    ]
    assert message == 'module "a.b": expected a module with a sharder, found none'


def test_a_sharding_type_that_the_sharder_has_not():
    tables = [EmbeddingConfig(10, 8, name=name, feature_names=[name]) for name in ("twrw", "grid")]
    plan = document({name: every_type()[name] for name in ("twrw", "grid")}, cuda)
    whole = model(a=model(b=EmbeddingCollection(tables, device=META)))
    assert [message for _, message in findings(plan, model=whole)] == [
        f'module "a.b", table "{name}": expected a sharding type that EmbeddingCollectionSharder has, found {type}'
        for name, type in (("twrw", "table_row_wise"), ("grid", "grid_shard"))
    ]


def test_a_kernel_that_the_sharder_has_not():
    class Fused(EmbeddingBagCollectionSharder):
        def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
            return ["fused"]

    def caching(tables: dict) -> None:
        tables["tw"].update(compute_kernel="fused_uvm_caching", cache_params={"load_factor": 0.1})

    whole = model(a=model(b=collection()))
    plan = changed(caching)
    assert load_plan(plan, model=whole).plan["a.b"]["tw"].cache_params.load_factor == 0.1
    assert [message for _, message in findings(plan, model=whole, sharders=[Fused()])] == [
        f'module "a.b", table "{name}": expected a kernel that Fused has on cuda, found {kernel}'
        for name, kernel in (("tw", "fused_uvm_caching"), ("dp", "dense"))
    ]


def test_row_wise_tables_of_a_plan_for_cpus():
    """TorchRec's sharder lists row-wise for GPUs only; on CPUs it runs, and trains as it should."""
    whole = model(a=model(b=collection()))
    assert load_plan(document(every_type(), cpu), model=whole, sharders=[EmbeddingBagCollectionSharder()])


def test_sequences_of_several_widths_and_replicas_on_cpus():
    cw = {
        "sharding_type": "column_wise",
        "compute_kernel": "fused",
        "shards": [(0, [0, 0], [9, 4]), (1, [0, 4], [9, 12])],
    }
    dp = {"sharding_type": "data_parallel", "compute_kernel": "dense"}
    plan = document(
        {"s": cw, "t": copy.deepcopy(cw) | {"shards": [(1, [0, 0], [9, 8]), (2, [0, 8], [9, 8])]}, "d": dp}, cpu
    )
    tables = [EmbeddingConfig(9, 16, name=name, feature_names=[name]) for name in "std"]
    whole = model(a=model(b=EmbeddingCollection(tables, device=META)))
    assert [message for _, message in findings(plan, model=whole)] == [
        'module "a.b", table "d": expected a sharding type that FBGEMM has for sequences on CPUs, found data_parallel',
        'module "a.b": expected column blocks of one width on rank 1, found 8 (table "t") and 12 (table "s")',
    ]
