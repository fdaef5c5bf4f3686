"""`shardc init`, from functions that build models to specs that compile."""

from __future__ import annotations

import itertools
import json
import sys
import textwrap
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from shardc.passes.place import EVALUATIONS  # noqa: E402
from shardc.spec import load_spec  # noqa: E402

NUMBERS = itertools.count()
TORCHREC = """
    import torch
    from torch import nn
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig
    from torchrec.distributed.planner import ParameterConstraints, Topology
    from torchrec.modules.embedding_configs import DataType
    from torchrec.models.dlrm import DLRM

    def bags(count=3, **options):
        return EmbeddingBagCollection([
            EmbeddingBagConfig(
                name=f"t_{i}",
                embedding_dim=64,
                num_embeddings=10**9 + i,
                feature_names=[f"f_{i}", "g"] if i == 1 else [f"f_{i}"],
                **options,
            )
            for i in range(count)
        ])
"""
PLAIN = """
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.user = nn.Module()
            self.user.age = nn.Embedding(120, 8)
            self.item = nn.ModuleDict({"id": nn.EmbeddingBag(10**10, 16), "brand": nn.EmbeddingBag(3000, 16)})
            self.top = nn.Linear(8, 1)
"""


@pytest.fixture
def shardc_(tmp_path, monkeypatch, run_command):
    """Run a command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EVALUATIONS, "balanced", 100)

    return run_command


def code(*parts: str) -> str:
    """Write a module of its own name into the working directory."""
    name = f"built_{next(NUMBERS)}"
    Path(f"{name}.py").write_text("\n".join(map(textwrap.dedent, parts)), encoding="utf-8")
    return name


def torchrec(*parts: str) -> str:
    pytest.importorskip("torchrec", reason="TorchRec is not installed")
    return code(TORCHREC, *parts)


# --- What is found ----------------------------------------------------------------------------------------------------


def test_a_torchrec_model_becomes_a_spec_that_compiles(shardc_):
    name = torchrec("def build(): return DLRM(bags(), 13, [64, 64], [64, 1])")
    done = shardc_("init", "--from", f"{name}:build", "--devices-per-host=16", "--global-batch=4096")
    assert done.code == 0
    assert done.out.startswith("3 tables of DLRM, in sparse_arch.embedding_bag_collection\n")
    loaded = load_spec("model.toml")
    model, cluster = loaded.spec.model, loaded.spec.cluster
    assert (model.module, model.weights) == ("sparse_arch.embedding_bag_collection", "fp32")
    assert (model.global_batch, cluster.devices_per_host) == (4096, 16)
    assert [(t.name, t.rows, t.dim) for t in loaded.tables] == [(f"t_{i}", 10**9 + i, 64) for i in range(3)]
    assert [table.features for table in loaded.tables] == [("f_0",), ("f_1", "g"), ("f_2",)]
    assert [table.pooling for table in loaded.tables] == [1, 2, 1]  # one lookup of each feature
    assert shardc_("validate", "model.toml").code == 0
    compiled = shardc_("compile", "model.toml", "--quiet")
    assert compiled.code == 0, compiled.err
    plan = json.loads(Path("model.plan.json").read_text())["plan"]
    assert set(plan["sparse_arch.embedding_bag_collection"]) == {"t_0", "t_1", "t_2"}


def test_a_plain_model_becomes_a_spec_that_compiles(shardc_):
    done = shardc_("init", "--from", f"{code(PLAIN)}:Model", "-o", "plain.toml", "--hosts=2", "--optimizer=sgd", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    loaded = load_spec("plain.toml")
    assert (loaded.spec.model.module, loaded.spec.model.optimizer, loaded.spec.cluster.hosts) == ("", "sgd", 2)
    found = [(table.name, table.rows, table.dim) for table in loaded.tables]
    assert found == [("item_brand", 3000, 16), ("item_id", 10**10, 16), ("user_age", 120, 8)]
    text = Path("plain.toml").read_text()
    assert 'name = "user_age"                     # the module user.age\n' in text
    assert "Outputs of nn.Embedding are not pooled" in text
    compiled = shardc_("compile", "plain.toml", "--quiet")
    assert compiled.code == 0, compiled.err
    exported = shardc_("export", "plain.plan.json", "--to", "pytorch")
    assert set(json.loads(exported.out)["modules"][""]) == {"item_brand", "item_id", "user_age"}


def test_the_spec_marks_what_nobody_said(shardc_):
    name = code(PLAIN)
    text = shardc_("init", "--from", f"{name}:Model", "--hosts=1", "-o", "-").out
    marked = [line.split(" =")[0] for line in text.splitlines() if "# assumed" in line]
    assert marked == ["global_batch", "optimizer", "device", "devices_per_host", "reserve", "pooling", "access"]
    assert text.startswith(f"# 3 tables of Model, as {name}:Model builds it.\n")
    assert "`shardc import dlrm lookups.pt -o -`" in text


@pytest.mark.parametrize(
    ("build", "module", "tables"),
    [
        ("nn.ModuleDict({'tables': nn.ModuleList([nn.EmbeddingBag(9, 8), nn.EmbeddingBag(7, 8)])})", "tables", "0 1"),
        ("nn.ModuleDict({'a': nn.ModuleDict({'b': nn.Embedding(9, 8), 'c': nn.Linear(2, 2)})})", "a", "b"),
        ("nn.Embedding(9, 8)", "", "table"),
        ("twice(nn.Embedding(9, 8))", "", "a"),
        ("tied(nn.Embedding(9, 8), nn.Embedding(9, 8))", "", "a"),
    ],
)
def test_where_plain_tables_are(shardc_, build, module, tables):
    helpers = """
        def twice(table):
            return nn.ModuleDict({"a": table, "b": table})

        def tied(first, second):
            second.weight = first.weight
            return nn.ModuleDict({"a": first, "b": second})
    """
    name = code(PLAIN, helpers, f"def build(): return {build}")
    assert shardc_("init", "--from", f"{name}:build").code == 0
    loaded = load_spec("model.toml")
    assert (loaded.spec.model.module, [table.name for table in loaded.tables]) == (module, tables.split())


SEVERAL = """
    def build():
        sequences = [EmbeddingConfig(name="s", embedding_dim=64, num_embeddings=9, feature_names=["f"])]
        return nn.ModuleDict({"a": bags(), "b": EmbeddingCollection(sequences), "c": nn.Embedding(9, 8)})
"""


def test_of_several_collections_one_is_chosen(shardc_):
    name = torchrec(SEVERAL)
    done = shardc_("init", "--from", f"{name}:build")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(
        'SH902 the model has tables in "a" (EmbeddingBagCollection, 3 tables), "b" (EmbeddingCollection, 1 table),'
        ' "" (torch.nn, 1 table): a spec is about one\nhelp: choose one with --module PATH'
    )
    assert 'none of them is "d"' in shardc_("init", "--from", f"{name}:build", "--module=d").err
    assert not Path("model.toml").exists()
    for module, tables in (("a", ["t_0", "t_1", "t_2"]), ("b", ["s"]), ("c", ["c"])):
        assert shardc_("init", "--from", f"{name}:build", "--module", module, "--force").code == 0
        assert [table.name for table in load_spec("model.toml").tables] == tables


@pytest.mark.parametrize(
    ("device", "types"),
    [("h100-80gb", ("table_wise", "row_wise", "data_parallel")), ("cpu-epyc", ("table_wise", "row_wise"))],
)
def test_only_what_runs_with_sequences_is_allowed(shardc_, device, types):
    done = shardc_("init", "--from", f"{torchrec(SEVERAL)}:build", "--module=b", "--device", device)
    assert done.code == 0
    (table,) = load_spec("model.toml").tables
    assert table.sharding == types
    assert "Outputs of EmbeddingCollection are not pooled" in Path("model.toml").read_text()


def test_a_collection_that_torchrec_shards_with_what_wraps_it_has_the_wrappers_path(shardc_):
    name = torchrec(
        """
        from torchrec.modules.feature_processor_ import PositionWeightedModule
        from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

        def build():
            weighted = EmbeddingBagCollection(bags().embedding_bag_configs(), is_weighted=True)
            processors = {name: PositionWeightedModule(5) for name in ("f_0", "f_1", "f_2", "g")}
            return nn.ModuleDict({"a": FeatureProcessedEmbeddingBagCollection(weighted, processors)})
        """
    )
    assert shardc_("init", "--from", f"{name}:build").code == 0
    assert load_spec("model.toml").spec.model.module == "a"


@pytest.mark.parametrize(("dtype", "weights"), [("FP16", "fp16"), ("BF16", "bf16")])
def test_types_of_weights(shardc_, dtype, weights):
    name = torchrec(f"def build(): return nn.ModuleDict({{'a': bags(data_type=DataType.{dtype})}})")
    assert shardc_("init", "--from", f"{name}:build").code == 0
    assert load_spec("model.toml").spec.model.weights == weights


# --- What TorchRec's planner is told ----------------------------------------------------------------------------------


def test_planner_inputs_are_taken_over(shardc_):
    name = torchrec(
        """
        def build():
            topology = Topology(
                16, "cuda", hbm_cap=70 * 2**30, local_world_size=8, intra_host_bw=300 * 10**6, inter_host_bw=25 * 10**6
            )
            constraints = {
                "t_0": ParameterConstraints(pooling_factors=[20.0], sharding_types=["row_wise", "column_wise"]),
                "t_1": ParameterConstraints(pooling_factors=[3.0, 4.5], min_partition=64),
            }
            return nn.ModuleDict({"ebc": bags()}), topology, constraints, 256
        """
    )
    done = shardc_("init", "--from", f"{name}:build")
    assert done.code == 0
    assert "SH705" not in done.err
    loaded = load_spec("model.toml")
    cluster = loaded.spec.cluster
    assert loaded.spec.model.global_batch == 16 * 256
    assert (cluster.hosts, cluster.devices_per_host, cluster.memory) == (2, 8, "70GiB")
    assert (cluster.intra_host_bandwidth, cluster.inter_host_bandwidth) == ("300GB/s", "25GB/s")
    assert [table.pooling for table in loaded.tables] == [20, 7.5, 1]
    assert loaded.tables[0].sharding == ("column_wise", "row_wise")
    # Halves of 64 columns would be narrower than its min_partition.
    assert loaded.tables[1].sharding == ("table_wise", "row_wise", "table_row_wise", "data_parallel")
    assert shardc_("compile", "model.toml", "--quiet").code == 0


def test_pooling_factors_of_plain_tables(shardc_):
    name = torchrec(
        """
        def build():
            model = nn.ModuleDict({"a": nn.EmbeddingBag(100, 16), "b": nn.EmbeddingBag(100, 16)})
            return model, Topology(2, "cpu"), {"b": ParameterConstraints(pooling_factors=[5.0])}, 256
        """
    )
    assert shardc_("init", "--from", f"{name}:build").code == 0
    assert [(table.name, table.pooling) for table in load_spec("model.toml").tables] == [("a", 1), ("b", 5)]


def test_collections_without_tables(shardc_):
    name = torchrec(
        """
        def none(): return nn.ModuleDict({"ebc": EmbeddingBagCollection([])})
        def one(): return nn.ModuleDict({"ebc": EmbeddingBagCollection([]), "other": bags()})
        """
    )
    done = shardc_("init", "--from", f"{name}:none")
    assert done.code == 1
    assert done.err.startswith("SH702 ModuleDict has no embedding tables\n")
    assert shardc_("init", "--from", f"{name}:one").code == 0
    assert load_spec("model.toml").spec.model.module == "other"


def test_no_folders_are_made(shardc_):
    name = torchrec("def build(): return bags()")
    for more in ([], ["--force"]):
        done = shardc_("init", "--from", f"{name}:build", "-o", "none/such/x.toml", *more)
        assert (done.code, done.err) == (2, "SH004 cannot write none/such/x.toml: no such folder\n\n")
        assert not Path("none").exists()


def test_devices_with_memory_of_their_own_and_options_that_win(shardc_):
    name = torchrec(
        """
        from torchrec.distributed.planner.types import CustomTopologyData

        def build():
            memory = CustomTopologyData({"ddr_cap": [2**33, 2**33, 2**33, 2**32 + 2**20]}, 4)
            topology = Topology(4, "cpu", local_world_size=4, custom_topology_data=memory)
            return nn.ModuleDict({"ebc": bags()}), topology, None, 256
        """
    )
    assert shardc_("init", "--from", f"{name}:build", "--global-batch=9").code == 0
    spec = load_spec("model.toml").spec
    assert (spec.model.global_batch, spec.cluster.device, spec.cluster.memory) == (9, "cpu-epyc", "8GiB")
    assert spec.cluster.rank_limit_bytes == {3: round(0.85 * (2**32 + 2**20))}
    assert "assumed; mean lookups" in Path("model.toml").read_text()
    assert "bandwidth" not in Path("model.toml").read_text()  # TorchRec's assumptions are nobody's figures


def test_what_a_spec_cannot_say_is_told_and_written_down(shardc_):
    name = torchrec(
        """
        def build():
            constraints = {
                "t_0": ParameterConstraints(min_partition=16, enforce_hbm=True),
                "t_1": ParameterConstraints(compute_kernels=["fused_uvm"]),
                "typo": ParameterConstraints(),
            }
            return nn.ModuleDict({"ebc": bags()}), Topology(2, "cuda", local_world_size=2), constraints, 256
        """
    )
    done = shardc_("init", "--from", f"{name}:build")
    said = [line for line in done.err.splitlines() if line.startswith("SH705 warning: ")]
    assert said == [
        'SH705 warning: there are constraints of table "typo", which the model does not have',
        'SH705 warning: left out: compute_kernels without fused, of table "t_1"',
        'SH705 warning: left out: min_partition of table "t_0"',
        'SH705 warning: left out: enforce_hbm of table "t_0"',
    ]
    text = Path("model.toml").read_text()
    assert all(f"# {line.removeprefix('SH705 warning: ')}\n" in text for line in said)
    assert "TorchRec's default" in text  # 32 GiB, which nobody stated


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (
            'Topology(3, "cuda", local_world_size=2), None, 1',
            "SH705 3 ranks are no whole hosts of 2",
        ),
        (
            'Topology(2, "cuda"), {"t_1": ParameterConstraints(pooling_factors=[1.0, 2.0, 3.0])}, 1',
            'SH705 constraints of table "t_1": 3 pooling_factors for 2 features',
        ),
        (
            'Topology(2, "cuda"), {"t_0": ParameterConstraints(sharding_types=["column_wise"], min_partition=64)}, 1',
            'SH705 constraints of table "t_0": min_partition 64 leaves no sharding type, with 64 columns',
        ),
        ('Topology(2, "cuda"), None, 0', "SH104 model.global_batch: expected at least 1, found 0"),
    ],
)
def test_planner_inputs_that_make_no_sense(shardc_, inputs, says):
    name = torchrec(f"def build(): return nn.ModuleDict({{'ebc': bags()}}), {inputs}")
    done = shardc_("init", "--from", f"{name}:build")
    assert (done.code, done.out) == (1, "")
    assert says in done.err
    assert not Path("model.toml").exists()


# --- The user's code --------------------------------------------------------------------------------------------------


def test_weights_take_no_memory_and_prints_do_not_end_up_in_the_spec(shardc_):
    name = code(
        PLAIN,
        """
        print("imported")

        def build():
            model = Model()  # 640 GB, were it not on the meta device
            print("device", model.item["id"].weight.device)
            return model
        """,
    )
    done = shardc_("init", "--from", f"{name}:build", "-o", "-")
    assert (done.code, done.err) == (0, "imported\ndevice meta\n")
    assert done.out.startswith("# 3 tables")


def test_packages_and_nested_functions_of_the_working_directory(shardc_, tmp_path):
    package = f"package_{next(NUMBERS)}"
    Path(package).mkdir()
    Path(package, "__init__.py").touch()
    Path(package, "models.py").write_text(
        textwrap.dedent(PLAIN) + "\nclass Zoo:\n    @staticmethod\n    def build(): return Model()\n"
    )
    before = list(sys.path)
    assert shardc_("init", "--from", f"{package}.models:Zoo.build").code == 0
    assert sys.path == before


FAILING = """
    def raises():
        raise ValueError("no such\\ntower")

    def reads_a_value():
        return torch.ones(3).sum().item()

    def leaves():
        raise SystemExit("usage: none")

    def needs(argument): ...

    def returns_words(): return "model"

    def returns_too_little(): return Model(), 3

    def returns_no_topology(): return Model(), 3, None, 4

    def nothing(): return nn.Linear(2, 2)

    model = Model()
"""


@pytest.mark.parametrize(
    ("function", "exit_code", "says"),
    [
        (
            "raises",
            2,
            'SH701 {0}:raises failed: ValueError: no such\nnote: {1}:15 in raises: raise ValueError("no such',
        ),
        ("reads_a_value", 2, "SH701 {0}:reads_a_value failed: RuntimeError: Tensor.item() cannot be called on meta"),
        ("leaves", 2, "SH701 {0}:leaves failed: SystemExit: usage: none\nnote: {1}:21 in leaves: "),
        ("needs", 2, "SH701 {0}:needs failed: TypeError: needs() missing 1 required positional argument"),
        ("return_words", 2, 'SH701 {0} has no return_words\nhelp: did you mean "returns_words"?'),
        ("zzz", 2, "SH701 {0} has no zzz\n\n"),
        ("model", 2, "SH701 {0}:model is a Model, not a function that builds a model\nhelp: write a function"),
        ("torch", 2, "SH701 {0}:torch is a module, not a function"),
        ("returns_words", 2, "SH701 {0}:returns_words returned a str, not a model\nhelp: return an nn.Module, or"),
        ("returns_too_little", 2, "SH701 {0}:returns_too_little returned (Model, int), not a model"),
        ("returns_no_topology", 2, "SH701 {0}:returns_no_topology returned (Model, int, NoneType, int), not a model"),
        ("nothing", 1, "SH702 Linear has no embedding tables\nhelp: shardc looks for EmbeddingBagCollection"),
    ],
)
def test_functions_that_fail(shardc_, function, exit_code, says):
    name = code(PLAIN.replace("10**10", "10"), FAILING)
    done = shardc_("init", "--from", f"{name}:{function}")
    assert (done.code, done.out) == (exit_code, "")
    assert done.err.startswith(says.format(name, Path(f"{name}.py").resolve()))
    assert not Path("model.toml").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import torc", "SH701 importing {0} failed: ModuleNotFoundError: No module named 'torc'\nnote: {1}:1 in <mod"),
        ("import torchrec.nothing", "SH701 importing {0} failed: ModuleNotFoundError: No module named 'torchrec"),
        ("1 / 0", "SH701 importing {0} failed: ZeroDivisionError: division by zero\nnote: {1}:1 in <module>: 1 / 0"),
        ("def (", "SH701 importing {0} failed: SyntaxError: invalid syntax"),
        ("import sys; sys.exit(3)", "SH701 importing {0} failed: SystemExit: 3"),
    ],
)
def test_modules_that_fail(shardc_, text, says):
    name = code(text)
    done = shardc_("init", "--from", f"{name}:build")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(says.format(name, Path(f"{name}.py").resolve()))


def test_what_to_install_is_said_where_torchrec_is_missing(shardc_, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrec", None)
    done = shardc_("init", "--from", f"{code('import torchrec')}:build")
    assert done.code == 2
    assert "help: pip install --no-deps torchrec==1.9.2" in done.err


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("nowhere_at_all:build", "SH701 no module nowhere_at_all in "),
        ("nowhere.at.all:build", "SH701 no module nowhere.at.all in "),
        ("json.nowhere:build", "SH701 no module json.nowhere in "),
        ("json.decoder.nowhere:build", "SH701 no module json.decoder.nowhere in "),
        ("json", "SH902 expected package.module:function, found json\nhelp: for example --from models.dlrm:build"),
        ("models/dlrm.py:build", "SH902 expected package.module:function, found models/dlrm.py:build"),
        (":build", "SH902 expected package.module:function"),
    ],
)
def test_references_to_nothing(shardc_, reference, says):
    done = shardc_("init", "--from", reference)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(says)


# --- Tables that a spec cannot describe -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("build", "says"),
    [
        ("nn.Embedding(9, 8, dtype=torch.float64)", 'SH702 table "table" has weights of float64; shardc plans fp32'),
        (
            "nn.ModuleDict({'a': nn.Embedding(9, 8), 'b': nn.Embedding(9, 8, dtype=torch.float16)})",
            'SH702 tables have weights of different types, of which a spec has one: fp16 ("b"), fp32 ("a")',
        ),
        (
            "nn.ModuleDict({'a': nn.ModuleDict({'b_c': nn.Embedding(9, 8)}),"
            " 'a_b': nn.ModuleDict({'c': nn.Embedding(9, 8)})})",
            'SH702 two tables would have the name "a_b_c": a.b_c and a_b.c\nhelp: rename a module',
        ),
        ("nn.ModuleDict({'wide': nn.Embedding(9, 1)})", 'SH702 table "wide" has vectors of length 1; FBGEMM'),
        ("nn.ModuleDict({'a/b': nn.Embedding(9, 8)})", 'SH104 name of table "a/b": expected a name without'),
        (
            "nn.ModuleDict({'a': torch.ao.nn.quantized.Embedding(9, 8)})",
            "SH702 a is quantized (Embedding): shardc plans training",
        ),
    ],
)  # fmt: skip
def test_plain_tables_that_a_spec_cannot_describe(shardc_, build, says):
    outside = "with torch.device('cpu'): return" if "quantized" in build else "return"
    name = code(PLAIN, f"def build():\n    {outside} {build}")
    done = shardc_("init", "--from", f"{name}:build")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(says)
    assert not Path("model.toml").exists()


def test_torchrec_tables_of_a_type_that_is_not_trained(shardc_):
    name = torchrec("def build(): return nn.ModuleDict({'a': bags(1, data_type=DataType.INT8)})")
    done = shardc_("init", "--from", f"{name}:build")
    assert (done.code, done.err) == (
        1,
        'SH702 table "t_0" has weights of INT8; shardc plans fp32, fp16 and bf16\n\n',
    )


# --- Files and options ------------------------------------------------------------------------------------------------


def test_help_says_that_the_code_is_run(shardc_):
    done = shardc_("init", "--help")
    assert (done.code, done.err) == (0, "")
    assert "imports and runs that code" in " ".join(done.out.split())
    assert "Example:\n    shardc init --from" in done.out


def test_files_are_not_replaced_unasked(shardc_):
    Path("model.toml").write_text("mine")
    name = code(PLAIN, "print('imported')")
    done = shardc_("init", "--from", f"{name}:Model")
    assert (done.code, done.err.splitlines()[0]) == (2, "SH004 cannot write model.toml: it is there already")
    assert "imported" not in done.err  # refused before any code ran
    assert Path("model.toml").read_text() == "mine"
    assert shardc_("init", "--from", f"{name}:Model", "--force").code == 0
    assert Path("model.toml").read_text() != "mine"


def test_code_that_changes_the_directory_does_not_move_the_spec(shardc_, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.toml").write_text("mine")
    build = "import os\n\ndef build():\n    os.chdir('other')\n    return Model()\n"
    assert shardc_("init", "--from", f"{code(PLAIN, build)}:build").code == 0
    assert (tmp_path / "other" / "model.toml").read_text() == "mine"
    assert len(load_spec(tmp_path / "model.toml").tables) == 3


def test_a_file_that_cannot_be_replaced_with_a_good_spec_is_kept(shardc_):
    Path("model.toml").write_text("mine")
    assert shardc_("init", "--from", f"{code(PLAIN)}:None_", "--force").code == 2
    assert Path("model.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--hosts=0", "SH104 cluster.hosts: expected at least 1, found 0"),
        ("--optimizer=sdg", 'SH104 model.optimizer: expected one of "sgd"'),
        ("--global-batch=0", "SH104 model.global_batch: expected at least 1"),
        ("--device=h100", "SH107 unknown device"),
        ("-o none/x.toml", "SH004 cannot write none/x.toml: no such folder"),
    ],
)
def test_options_are_refused_before_any_code_runs(shardc_, options, says):
    name = code(PLAIN, "print('imported')")
    done = shardc_("init", "--from", f"{name}:Model", *options.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(says)
    assert "imported" not in done.err
