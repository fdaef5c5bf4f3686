"""Fit the fused cost model to the measurements of a campaign.

The error that is minimised, and reported, is relative: an error of 5 % matters as much for a small device as for a
large one. A fifth of the sets is held out; no table of theirs is in the training sets (every set draws its own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shardc.access import histograms
from shardc.cost.fused import BASES, FEATURES, FusedCost, bases, features, operator_kind
from shardc.measure.campaign import Measurement
from shardc.measure.design import is_repeat, repeated
from shardc.measure.workload import Workload
from shardc.problem import BYTES_PER_ELEMENT, Floats, Ints, Optimizer, ShardingType, Shards

_LATENTS, _HIDDEN, _GROUPS, _PIECES = 8, 48, 8, 4
_HELD_OUT = 5  # every fifth set


@dataclass(frozen=True, slots=True)
class FitReport:
    """Errors on held-out sets, which share no table with the training sets.

    Attributes:
        train_sets: sets trained on.
        test_sets: sets held out.
        mean_relative_error: of forward and of backward time.
        mean_absolute_error_ms: of forward and of backward time.
        kendall_tau: rank correlation of forward plus backward time.
        noise: mean relative difference of two measurements of one set, forward and backward.
    """

    train_sets: int
    test_sets: int
    mean_relative_error: tuple[float, float]
    mean_absolute_error_ms: tuple[float, float]
    kendall_tau: float
    noise: tuple[float, float]


def workload_shards(workloads: Sequence[Workload]) -> Shards:
    """The tables of all workloads, one after the other, as a cost model sees them."""
    pairs = [(w, t) for w in workloads for t in w.tables]
    rows = np.array([t.rows for _, t in pairs], dtype=np.float64)
    lookups = np.array([w.batch * t.pooling for w, t in pairs])
    found = histograms([t.access for _, t in pairs], rows, lookups)
    return Shards(
        rows=rows.astype(np.int64),
        dim=np.array([t.dim for _, t in pairs]),
        pooling=np.array([t.pooling for _, t in pairs]),
        bags=np.array([w.batch for w, _ in pairs]),
        bins=found.bins,
        unique=found.unique,
        weight_bytes=np.array([BYTES_PER_ELEMENT[w.weights] for w, _ in pairs]),
        output_bytes=np.full(len(pairs), 4),
        optimizer=np.array([list(Optimizer).index(Optimizer(w.optimizer)) for w, _ in pairs]),
        type=np.full(len(pairs), list(ShardingType).index(ShardingType.TABLE_WISE)),
    )


class _Network(torch.nn.Module):
    """The trainable form of `shardc.cost.fused.FusedCost`; positive parameters are kept as logarithms."""

    def __init__(self, mean: Floats, std: Floats) -> None:
        super().__init__()
        self.mean = torch.nn.Buffer(torch.from_numpy(mean))
        self.std = torch.nn.Buffer(torch.from_numpy(std))
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, _HIDDEN), torch.nn.ReLU(), torch.nn.Linear(_HIDDEN, 2 * _LATENTS)
        )
        self.scale = torch.nn.Parameter(torch.zeros(2, BASES))
        self.pieces = torch.nn.Parameter(torch.randn(2, _GROUPS, _PIECES, _LATENTS) - np.log(_GROUPS * _LATENTS))
        self.offsets = torch.nn.Parameter(torch.randn(2, _GROUPS, _PIECES) * 0.01)
        self.fixed = torch.nn.Parameter(torch.full((4, 2), -1.5))

    def forward(self, x: torch.Tensor, amounts: torch.Tensor, owner: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        """Forward and backward ms, [sets, 2], of tables x [N, 27], amounts [N, 6] in sets owner [N] of kind [sets]."""
        rates = torch.nn.functional.softplus(self.encoder((x - self.mean) / self.std))
        latents = rates.view(-1, 2, _LATENTS) * (amounts @ self.scale.exp().T)[:, :, None]
        z = torch.zeros(len(kind), 2, _LATENTS, dtype=x.dtype).index_add(0, owner, latents)
        values = torch.einsum("spk,pgjk->spgj", z, self.pieces.exp()) + self.offsets
        heads = values.amax(-1).sum(-1) - self.offsets.amax(-1).sum(-1)
        return heads + self.fixed.exp()[kind]

    def exported(self) -> dict[str, NDArray[np.float64]]:
        """The arrays that `FusedCost` reads."""
        arrays = {name: value.detach().numpy() for name, value in self.state_dict().items()}
        arrays = {name.replace("encoder.2", "encoder.1"): value for name, value in arrays.items()}
        return arrays | {name: np.exp(arrays[name]) for name in ("scale", "pieces", "fixed")}


def fit_cost(
    measurements: Sequence[Measurement],
    *,
    seed: int = 0,
    epochs: int = 100,
    progress: Callable[[int, int, float], None] = lambda epoch, epochs, error: None,
) -> tuple[dict[str, Floats], FitReport]:
    """Train on the campaign's sets; deterministic for a seed.

    Args:
        measurements: the campaign, repeats included.
        seed: of initialisation and batches.
        epochs: passes over the training sets.
        progress: called with epoch, epochs and the mean training error.

    Returns:
        The weights of a `FusedCost`, and their errors on held-out sets.
    """
    torch.set_num_threads(1)  # as fast for matrices this small, and the result does not depend on how many there are
    torch.manual_seed(seed)
    first = [m for m in measurements if not is_repeat(m.index)]
    test = [i for i, m in enumerate(first) if m.index % _HELD_OUT == 0]
    train = [i for i, m in enumerate(first) if m.index % _HELD_OUT != 0]
    times = ratios(first) * reference_ms(measurements)
    shards = workload_shards([m.workload for m in first])
    owner = np.repeat(np.arange(len(first)), [len(m.workload.tables) for m in first])
    x, amounts = features(shards), bases(shards)
    in_train = np.isin(owner, train)
    network = _Network(x[in_train].mean(axis=0), x[in_train].std(axis=0) + 1e-3).double()
    starts = np.concatenate([[0], np.cumsum([len(m.workload.tables) for m in first])])
    kinds = np.array([operator_kind(Optimizer(m.workload.optimizer), m.workload.weights) for m in first])
    kind, target = torch.from_numpy(kinds), torch.from_numpy(times).log()
    tx, ta = torch.from_numpy(x), torch.from_numpy(amounts)
    optimizer = torch.optim.Adam(network.parameters())
    batch = 64
    steps = epochs * -(-len(train) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    order = np.random.default_rng(seed)
    for epoch in range(epochs):
        total = 0.0
        shuffled = order.permutation(train)
        for at in range(0, len(train), batch):
            sets = shuffled[at : at + batch]
            index = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in sets])
            group = np.repeat(np.arange(len(sets)), starts[sets + 1] - starts[sets])
            predicted = network(tx[index], ta[index], torch.from_numpy(group), kind[sets]).log()
            loss = torch.nn.functional.smooth_l1_loss(predicted, target[sets], beta=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float((predicted - target[sets]).detach().abs().mean()) * len(sets)
        progress(epoch + 1, epochs, total / len(train))
    arrays = network.exported()
    return arrays, _report(arrays, kinds, shards, owner, times, test, len(train), _noise(measurements))


def reference_ms(measurements: Sequence[Measurement]) -> Floats:
    """The reference set's own forward and backward time, float[2] ms: its median over the campaign."""
    times = [(m.timing.reference_forward_ms, m.timing.reference_backward_ms) for m in measurements]
    return np.asarray(np.median(np.array(times), axis=0))


def ratios(measurements: Sequence[Measurement]) -> Floats:
    """Forward and backward time of each set as ratios to the reference, float[M, 2]."""
    return np.array([(m.timing.forward_ratio, m.timing.backward_ratio) for m in measurements])


def _report(
    arrays: dict[str, Floats],
    kinds: Ints,
    shards: Shards,
    owner: Ints,
    times: Floats,
    test: list[int],
    train: int,
    noise: Floats,
) -> FitReport:
    model = FusedCost(arrays, kind=0)
    latents = model.encode(shards)
    z = np.zeros((len(times), latents.shape[1]))
    np.add.at(z, owner, latents)
    predicted, actual = (model.heads(z) + arrays["fixed"][kinds])[test], times[test]
    relative = np.abs(predicted / actual - 1).mean(axis=0)
    absolute = np.abs(predicted - actual).mean(axis=0)
    return FitReport(
        train_sets=train,
        test_sets=len(test),
        mean_relative_error=_pair(relative),
        mean_absolute_error_ms=_pair(absolute),
        kendall_tau=kendall_tau(predicted.sum(axis=1), actual.sum(axis=1)),
        noise=_pair(noise),
    )


def _noise(measurements: Sequence[Measurement]) -> Floats:
    """Mean relative difference of two measurements of one set, float[2]."""
    by_index = {m.index: m for m in measurements}
    pairs = [(by_index.get(repeated(i)), m) for i, m in by_index.items() if is_repeat(i)]
    twice = [ratios([a, b]) for a, b in pairs if a is not None]
    return np.mean([np.abs(a / b - 1) for a, b in twice], axis=0) if twice else np.zeros(2)


def kendall_tau(predicted: Floats, actual: Floats) -> float:
    """Rank correlation: concordant less discordant pairs, over all pairs."""
    upper = np.triu_indices(len(actual), 1)
    agree = np.sign(predicted[upper[0]] - predicted[upper[1]]) * np.sign(actual[upper[0]] - actual[upper[1]])
    return float(agree.mean())


def _pair(values: Floats) -> tuple[float, float]:
    return float(values[0]), float(values[1])
