"""Fit the fused cost model to the measurements of a campaign.

The error that is minimised, and reported, is relative: an error of 5 % matters as much for a small device as for a
large one. A fifth of the sets is held out; no table of theirs is in the training sets (every set draws its own). Sets
that were measured only while the device was disturbed take no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shardc.access import histograms
from shardc.cost.fused import BASES, FEATURES, FusedCost, bases, features, operator_kind
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.measure.campaign import Measurement
from shardc.measure.design import is_held_out, is_own, is_repeat, repeated
from shardc.measure.workload import Workload
from shardc.problem import BYTES_PER_ELEMENT, Floats, Ints, Optimizer, ShardingType, Shards

MEMBERS = 4
EPOCHS = 60
QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_LATENTS, _HIDDEN, _GROUPS, _PIECES = 8, 64, 8, 4
_BATCH, _RATE, _DECAY = 128, 1e-2, 0.03
_LEAST_TRAIN, _LEAST_TEST = 10, 3  # sets; errors on so few are large, and compiling with such a profile says so
_OWN_WEIGHT = 10  # times that a set of a user's own plan is trained on where others are once


@dataclass(frozen=True, slots=True)
class FitReport:
    """Errors on held-out sets, which share no table with the training sets. Pairs are of forward and backward time.

    Attributes:
        train_sets: sets trained on.
        test_sets: sets held out.
        mean_relative_error: mean of |predicted / measured - 1|.
        total_relative_error: the same of forward plus backward time.
        mean_absolute_error_ms: mean of |predicted - measured|.
        kendall_tau: rank correlation of forward plus backward time.
        noise: mean relative difference of two measurements of one set; None if none was measured twice.
        margins: for each of `QUANTILES` the factors on the largest of all models' predictions that this share of the
            held-out sets stays below.
    """

    train_sets: int
    test_sets: int
    mean_relative_error: tuple[float, float]
    total_relative_error: float
    mean_absolute_error_ms: tuple[float, float]
    kendall_tau: float
    noise: tuple[float, float] | None
    margins: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Sets:
    """Measured sets as arrays. M sets of N tables in all.

    Attributes:
        x: float[N, 29], features of the tables, set by set.
        amounts: float[N, 6], their bases.
        starts: int[M + 1], where each set's tables start.
        kinds: int[M], kind of operator.
        times: float[M, 2], forward and backward ms.
    """

    x: torch.Tensor
    amounts: torch.Tensor
    starts: Ints
    kinds: Ints
    times: Floats

    def batch(self, sets: Ints) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features, bases and owner (position in `sets`) of the tables of some sets, and the sets' kinds."""
        counts = self.starts[sets + 1] - self.starts[sets]
        owner = np.repeat(np.arange(len(sets)), counts)
        first = np.repeat(self.starts[sets] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        tables = torch.from_numpy(first + np.arange(len(owner)))
        return self.x[tables], self.amounts[tables], torch.from_numpy(owner), torch.from_numpy(self.kinds[sets])


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
        cached=np.ones(len(pairs)),
    )


def as_sets(measurements: Sequence[Measurement]) -> Sets:
    """Measurements as arrays."""
    shards = workload_shards([m.workload for m in measurements])
    return Sets(
        x=torch.from_numpy(features(shards)).float(),
        amounts=torch.from_numpy(bases(shards)).float(),
        starts=np.concatenate([[0], np.cumsum([len(m.workload.tables) for m in measurements])]),
        kinds=np.array([operator_kind(Optimizer(m.workload.optimizer), m.workload.weights) for m in measurements]),
        times=ratios(measurements) * reference_ms(measurements),
    )


class Network(torch.nn.Module):
    """The trainable form of one model of `shardc.cost.fused.FusedCost`; positive parameters are kept as logarithms."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.mean, self.std = torch.nn.Buffer(mean), torch.nn.Buffer(std)
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, _HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Linear(_HIDDEN, _HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Linear(_HIDDEN, 2 * _LATENTS),
        )
        self.scale = torch.nn.Parameter(torch.zeros(2, BASES))
        self.pieces = torch.nn.Parameter(torch.randn(2, _GROUPS, _PIECES, _LATENTS) - np.log(_GROUPS * _LATENTS))
        self.offsets = torch.nn.Parameter(torch.randn(2, _GROUPS, _PIECES) * 0.01)
        self.fixed = torch.nn.Parameter(torch.full((4, 2), -1.5))

    def forward(self, x: torch.Tensor, amounts: torch.Tensor, owner: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        """Forward and backward ms, [sets, 2], of tables x [N, 29], amounts [N, 6] in sets owner [N] of kind [sets]."""
        rates = torch.nn.functional.softplus(self.encoder((x - self.mean) / self.std))
        latents = rates.view(-1, 2, _LATENTS) * (amounts @ self.scale.exp().T)[:, :, None]
        z = torch.zeros(len(kind), 2, _LATENTS, dtype=x.dtype).index_add(0, owner, latents)
        values = torch.einsum("spk,pgjk->spgj", z, self.pieces.exp()) + self.offsets
        heads = values.amax(-1).sum(-1) - self.offsets.amax(-1).sum(-1)
        return heads + self.fixed.exp()[kind]

    def exported(self) -> dict[str, NDArray[np.float64]]:
        """The arrays that `FusedCost` reads, of one model."""
        arrays = {name: value.detach().double().numpy() for name, value in self.state_dict().items()}
        arrays = {
            name.replace("encoder.2", "encoder.1").replace("encoder.4", "encoder.2"): a for name, a in arrays.items()
        }
        return arrays | {name: np.exp(arrays[name]) for name in ("scale", "pieces", "fixed")}


def fit_cost(
    measurements: Sequence[Measurement],
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    progress: Callable[[int, int, float], None] = lambda done, total, error: None,
) -> tuple[dict[str, Floats], FitReport]:
    """Train on the campaign's undisturbed sets; deterministic for a seed.

    Args:
        measurements: the campaign, repeats included.
        seed: of initialisation and batches.
        epochs: passes over the training sets, for each of `MEMBERS` models.
        progress: called with epochs done, epochs of all models, and the mean training error.

    Returns:
        The weights of a `FusedCost`, and their errors on held-out sets.

    Raises:
        DiagnosticError: SH510 when too few sets are undisturbed to learn from and to test on.
    """
    steady = [m for m in measurements if not m.disturbed]
    first = [m for m in steady if not is_repeat(m.index)]
    held_out = np.array([is_held_out(m.index) for m in first])
    own = np.array([is_own(m.index) for m in first])
    if held_out.sum() < _LEAST_TEST or (~held_out).sum() < _LEAST_TRAIN:
        message = f"of {len(measurements)} measured sets {len(steady)} are undisturbed: too few to learn from"
        fix = "run the same command when nothing else runs here, with more --sets; what is measured is kept"
        raise DiagnosticError(Diagnostic("SH510", message, help=fix), exit_code=2)
    train = np.concatenate([np.flatnonzero(~held_out), np.repeat(np.flatnonzero(own), _OWN_WEIGHT - 1)])
    sets = as_sets(first)
    mean, std = scaling(sets, train)
    arrays = []
    for member in range(MEMBERS):

        def show(epoch: int, error: float, before: int = member * epochs) -> None:
            progress(before + epoch, MEMBERS * epochs, error)

        torch.manual_seed(seed + member)
        network = Network(mean, std)
        train_network(network, sets, train, seed=seed + member, epochs=epochs, progress=show)
        arrays.append(network.exported())
    weights = {name: np.stack([each[name] for each in arrays]) for name in arrays[0] if name not in ("mean", "std")}
    weights |= {name: arrays[0][name] for name in ("mean", "std")}
    test = np.flatnonzero(held_out)
    shards = workload_shards([first[i].workload for i in test])
    counts = [len(first[i].workload.tables) for i in test]
    estimate = predicted(weights, shards, counts, sets.kinds[test])
    largest = predicted(weights, shards, counts, sets.kinds[test], members=MEMBERS)
    return weights, report(estimate, largest, sets.times[test], trained_on=len(first) - len(test), differ=noise(steady))


def scaling(sets: Sets, train: Ints) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the training tables' features."""
    x = sets.batch(np.unique(train))[0]
    return x.mean(dim=0), x.std(dim=0) + 1e-3


def train_network(
    network: torch.nn.Module,
    sets: Sets,
    train: Ints,
    *,
    seed: int,
    epochs: int,
    rate: float = _RATE,
    progress: Callable[[int, float], None] = lambda epoch, error: None,
) -> None:
    """Minimise the relative error on the sets `train`; robust against wild measurements.

    Args:
        network: predicts ms as `Network` does.
        sets: the measured sets.
        train: the sets to train on, repeated ones as often as they count.
        seed: of the order.
        epochs: passes.
        rate: peak learning rate.
        progress: called with epochs done and the mean error.
    """
    torch.set_num_threads(1)  # as fast for matrices this small, and the result does not depend on how many there are
    target = torch.from_numpy(sets.times).log().float()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * -(-len(train) // _BATCH))
    order = np.random.default_rng(seed)
    for epoch in range(epochs):
        total = 0.0
        shuffled = order.permutation(train)
        for at in range(0, len(train), _BATCH):
            chosen = shuffled[at : at + _BATCH]
            logs, wanted = network(*sets.batch(chosen)).log(), target[torch.from_numpy(chosen)]
            loss = torch.nn.functional.smooth_l1_loss(logs, wanted, beta=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float((logs - wanted).detach().abs().mean()) * len(chosen)
        progress(epoch + 1, total / len(train))


def predicted(
    weights: dict[str, Floats], shards: Shards, counts: Sequence[int], kinds: Ints, members: int = 1
) -> Floats:
    """Forward and backward ms of sets of tables, float[M, 2]: the first `counts[0]` shards are the first set, ..."""
    owner = np.repeat(np.arange(len(counts)), counts)
    latents = FusedCost(weights, 0, members).encode(shards)
    z = np.zeros((len(counts), latents.shape[1]))
    np.add.at(z, owner, latents)
    ms = np.empty((len(counts), 2))
    for kind in np.unique(kinds):
        model = FusedCost(weights, int(kind), members)
        ms[kinds == kind] = model.heads(z[kinds == kind]) + model.constants
    return ms


def reference_ms(measurements: Sequence[Measurement]) -> Floats:
    """The reference set's own forward and backward time, float[2] ms: its median over the campaign."""
    times = [(m.timing.reference_forward_ms, m.timing.reference_backward_ms) for m in measurements]
    return np.asarray(np.median(np.array(times), axis=0))


def ratios(measurements: Sequence[Measurement]) -> Floats:
    """Forward and backward time of each set as ratios to the reference, float[M, 2]."""
    return np.array([(m.timing.forward_ratio, m.timing.backward_ratio) for m in measurements])


def report(estimate: Floats, largest: Floats, actual: Floats, *, trained_on: int, differ: Floats | None) -> FitReport:
    """Compare predictions with what was measured, float[M, 2] ms each."""
    total = estimate.sum(axis=1), actual.sum(axis=1)
    return FitReport(
        train_sets=trained_on,
        test_sets=len(actual),
        mean_relative_error=_pair(np.abs(estimate / actual - 1).mean(axis=0)),
        total_relative_error=float(np.abs(total[0] / total[1] - 1).mean()),
        mean_absolute_error_ms=_pair(np.abs(estimate - actual).mean(axis=0)),
        kendall_tau=kendall_tau(*total),
        noise=None if differ is None else _pair(differ),
        margins=tuple(_pair(margin) for margin in np.quantile(actual / largest, QUANTILES, axis=0)),
    )


def noise(measurements: Sequence[Measurement]) -> Floats | None:
    """Mean relative difference of two measurements of one set, float[2]; None if none was measured twice."""
    if not (pairs := measured_twice(measurements)):
        return None
    first, again = (ratios(times) for times in zip(*pairs, strict=True))
    return np.asarray(np.abs(first / again - 1).mean(axis=0))


def measured_twice(measurements: Sequence[Measurement]) -> list[tuple[Measurement, Measurement]]:
    """The two measurements of every set that was measured twice."""
    by_index = {m.index: m for m in measurements}
    pairs = [(by_index.get(repeated(i)), m) for i, m in by_index.items() if is_repeat(i)]
    return [(first, again) for first, again in pairs if first is not None]


def kendall_tau(predicted: Floats, actual: Floats) -> float:
    """Rank correlation: concordant less discordant pairs, over all pairs."""
    upper = np.triu_indices(len(actual), 1)
    agree = np.sign(predicted[upper[0]] - predicted[upper[1]]) * np.sign(actual[upper[0]] - actual[upper[1]])
    return float(agree.mean())


def _pair(values: Floats) -> tuple[float, float]:
    return float(values[0]), float(values[1])
