"""From the function that builds a TorchRec model, by way of a spec, to a plan that the model runs with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed")

from ranks import run_ranks  # noqa: E402
from torchrec.distributed import DistributedModelParallel  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.types import ShardedTensor  # noqa: E402
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: E402

from shardc import cli  # noqa: E402
from shardc.frameworks.torchrec import load_plan  # noqa: E402

MODEL = """
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

def tables():
    return EmbeddingBagCollection([
        EmbeddingBagConfig(name=f"t_{i}", embedding_dim=8, num_embeddings=100 * 99**i, feature_names=[f"f_{i}"])
        for i in range(3)
    ])

def nested():
    return nn.Sequential(nn.ModuleDict({"sparse": tables()}))
"""


def look_up(rank: int, folder: Path, function: str) -> None:
    """One rank: the model that the function builds looks rows up as the unsharded one does."""
    spec = importlib.util.spec_from_file_location("built", folder / "towers_of_test.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    single = getattr(module, function)()
    path = "0.sparse" if function == "nested" else ""
    plan = load_plan(folder / f"{function}.plan.json")
    assert list(plan.plan) == [path]
    sharder = EmbeddingBagCollectionSharder()
    model = getattr(module, function)()
    model = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=[sharder])
    assert type(model.module.get_submodule(path)).__name__ == "ShardedEmbeddingBagCollection"
    whole = single.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not isinstance(value, ShardedTensor):
                value.copy_(whole[name])  # data-parallel
                continue
            for shard in value.local_shards():
                (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                shard.tensor.copy_(whole[name][row : row + rows, column : column + columns])
    lookups = KeyedJaggedTensor(
        [f"f_{i}" for i in range(3)], torch.arange(6) * 9 + rank, lengths=torch.ones(6, dtype=torch.int64)
    )
    found = model.module.get_submodule(path)(lookups).to_dict()
    for key, expected in single.get_submodule(path)(lookups).to_dict().items():
        torch.testing.assert_close(found[key], expected)


@pytest.mark.parametrize("function", ["nested", "tables"])
def test_the_model_runs_with_the_plan_of_its_spec(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("towers_of_test.py").write_text(MODEL)
    for arguments in (
        f"init --from towers_of_test:{function} -o {function}.toml -q --device=cpu-epyc --devices-per-host=2",
        f"compile {function}.toml --effort=fast -q",
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments.split())
        assert not stop.value.code
    run_ranks(look_up, (tmp_path, function), hosts=1, devices=2, folder=tmp_path)
