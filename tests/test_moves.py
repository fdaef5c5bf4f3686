import numpy as np
import pytest

from shardc.memory import optimizer_state_bytes
from shardc.moves import Pieces, Weighing, additions, pieces_of, transfers
from shardc.plan import TablePlan

HOSTS, LOCAL = 2, 2
DEVICES = HOSTS * LOCAL


def placed(kind: str, rows: int, columns: int, rng: np.random.Generator) -> TablePlan:
    """A table sharded in one of TorchRec's ways on four ranks."""
    if kind == "data_parallel":
        members = {"ranks": range(DEVICES), "shape": (rows, columns), "compute_kernel": "dense"}
        return TablePlan.model_validate({"sharding_type": kind, **members})
    local = {"row_wise": DEVICES, "table_row_wise": LOCAL, "grid_shard": LOCAL}.get(kind, 1)
    blocks = int(rng.integers(1, 3)) if kind in ("column_wise", "grid_shard") else 1
    starts = rng.permutation(DEVICES // local)[:blocks] * local
    widths = [columns // blocks // 4 * 4] * (blocks - 1)
    widths.append(columns - sum(widths))
    height, shards, column = -(-rows // local), [], 0
    for start, width in zip(starts.tolist(), widths, strict=True):
        for number in range(local):
            first, end = min(number * height, rows), min((number + 1) * height, rows)
            shards.append(
                {
                    "shard_offsets": (first, column),
                    "shard_sizes": (end - first, width),
                    "placement": f"rank:{start + number}/cpu",
                }
            )
        column += width
    ranks = [int(shard["placement"][5]) for shard in shards]
    return TablePlan.model_validate(
        {"sharding_type": kind, "compute_kernel": "fused", "ranks": ranks, "shards": shards}
    )


def held(table: TablePlan, rows: int, columns: int) -> np.ndarray:
    """bool[D, rows, columns]: which weights each device holds."""
    devices = np.zeros((DEVICES, rows, columns), dtype=bool)
    if table.sharding_type == "data_parallel":
        devices[:, : table.shape[0], : table.shape[1]] = True
    for shard in table.shards:
        (row, column), (height, width) = shard.shard_offsets, shard.shard_sizes
        devices[shard.rank, row : row + height, column : column + width] = True
    return devices


KINDS = ["table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard", "data_parallel"]


@pytest.mark.parametrize("seed", range(150))
def test_what_moves_is_what_counting_weights_by_their_owners_finds(seed):
    rng = np.random.default_rng(seed)
    old_size, new_size = [(int(rng.integers(3, 14)), int(rng.choice([8, 12, 16]))) for _ in range(2)]
    if rng.random() < 0.5:
        new_size = old_size
    old, new = placed(str(rng.choice(KINDS)), *old_size, rng), placed(str(rng.choice(KINDS)), *new_size, rng)
    shape = tuple(np.maximum(old_size, new_size).tolist())
    before, after = held(old, *shape), held(new, *shape)
    exists = before.any(axis=0)

    moves = transfers(pieces_of(old), pieces_of(new), LOCAL)

    got = np.zeros((DEVICES, *shape), dtype=int)
    for source, target, (row, column, height, width) in zip(
        moves.source.tolist(), moves.target.tolist(), moves.area.tolist(), strict=True
    ):
        part = np.s_[row : row + height, column : column + width]
        got[target][part] += 1
        assert before[source][part].all()
        assert source != target
    assert (got == (after & exists & ~before)).all()

    fresh = additions(pieces_of(old), pieces_of(new))
    made = np.zeros((DEVICES, *shape), dtype=int)
    for target, (row, column, height, width) in zip(fresh.target.tolist(), fresh.area.tolist(), strict=True):
        made[target, row : row + height, column : column + width] += 1
    assert (made == (after & ~exists)).all()


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adagrad", "adam"])
@pytest.mark.parametrize("seed", range(20))
def test_bytes_are_of_weights_and_of_their_optimizer_state(seed, optimizer):
    rng = np.random.default_rng(seed)
    old, new = (placed(str(rng.choice(KINDS[:5])), 11, 16, rng) for _ in range(2))
    owner = [held(table, 11, 16).argmax(axis=0) for table in (old, new)]
    weights = owner[0] != owner[1]
    # A row that gets weights from a device gets a value of row-wise state from there too.
    rows = {
        (row, source, target)
        for row, column in np.argwhere(weights).tolist()
        for source, target in [(int(owner[0][row, column]), int(owner[1][row, column]))]
    }
    state = {"sgd": 0, "rowwise_adagrad": len(rows), "adagrad": weights.sum(), "adam": 2 * weights.sum()}[optimizer]
    moves = transfers(pieces_of(old), pieces_of(new), LOCAL)
    assert Weighing(2, optimizer).bytes(moves.area).sum() == 2 * weights.sum() + 4 * state


def test_state_stays_behind_when_the_optimizer_changes():
    area = np.array([[0, 0, 10, 8]])
    assert Weighing.of("adam", "fp16", "adagrad").bytes(area).tolist() == [160]
    assert Weighing.of("adam", "fp16", "adam").bytes(area).tolist() == [160 + optimizer_state_bytes(10, 8, "adam")]


def test_replicas_are_copied_from_the_same_host_where_one_is():
    old = Pieces(np.arange(4), np.array([[0, 0, 10, 8]]), True)
    new = Pieces(np.arange(6), np.array([[0, 0, 10, 8]]), True)
    moves = transfers(old, new, 3)  # ranks 3, 4 and 5 share a host
    assert dict(zip(moves.target.tolist(), moves.source.tolist(), strict=True)) == {4: 3, 5: 3}
