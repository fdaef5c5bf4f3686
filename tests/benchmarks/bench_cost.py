"""How exact the cost model of a measured profile is, beside other models trained on the same sets of tables.

    python tests/benchmarks/bench_cost.py [PROFILE]

Compared are, on held-out sets that share no table with the training sets:

- certified: the convex, monotone model that shardc ships, trained anew;
- unconstrained: the same encoder and features, but any network on top of its latents;
- AutoShard: the network of the paper (2208.06399, section 3.3): 128-32 a table, summed, 64-1, with the same features;
- measured again: a second measurement of sets that were measured twice, in place of a prediction of the first;
- sum of singles: the certified model's cost of every table alone, added up, through the linear map that fits best.

Once on all sizes of sets, and once trained on small sets only and tested on larger ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from shardc.hardware import PROFILES
from shardc.learn.fit_cost import (
    EPOCHS,
    Network,
    Sets,
    as_sets,
    kendall_tau,
    measured_twice,
    ratios,
    reference_ms,
    scaling,
    train_network,
)
from shardc.measure.campaign import read_campaign
from shardc.measure.design import is_held_out, is_repeat

SMALL = 16  # tables of a set, at most, where larger ones are extrapolated to


class Unconstrained(Network):
    """Any function of the latents, instead of sums of maxima of non-negative linear ones."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__(mean, std)
        self.head = torch.nn.Sequential(
            torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)
        )

    def forward(self, x: torch.Tensor, amounts: torch.Tensor, owner: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        rates = torch.nn.functional.softplus(self.encoder((x - self.mean) / self.std))
        latents = rates.view(len(x), 2, -1) * (amounts @ self.scale.exp().T)[:, :, None]
        z = torch.zeros(len(kind), *latents.shape[1:]).index_add(0, owner, latents).flatten(1)
        kinds = torch.nn.functional.one_hot(kind, 4)
        return self.head(torch.cat([(z + 1e-3).log(), kinds], dim=1)).clamp(-12, 12).exp()


class AutoShard(torch.nn.Module):
    """The paper's network, one for each direction; its output is a logarithm, as errors are relative."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.encoders, self.heads = torch.nn.ModuleList(), torch.nn.ModuleList()
        for _ in range(2):
            self.encoders.append(
                torch.nn.Sequential(torch.nn.Linear(len(mean), 128), torch.nn.ReLU(), torch.nn.Linear(128, 32))
            )
            self.heads.append(torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)))

    def forward(self, x: torch.Tensor, amounts: torch.Tensor, owner: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean) / self.std
        logs = []
        for encoder, head in zip(self.encoders, self.heads, strict=True):
            logs.append(head(torch.zeros(len(kind), 32).index_add(0, owner, encoder(x))))
        return torch.cat(logs, dim=1).clamp(-12, 12).exp()


def trained(
    make: Callable[[torch.Tensor, torch.Tensor], torch.nn.Module], sets: Sets, train: np.ndarray, rate: float
) -> torch.nn.Module:
    torch.manual_seed(0)
    network = make(*scaling(sets, train))
    train_network(network, sets, train, seed=0, epochs=EPOCHS, rate=rate)
    return network.eval()


def predictions(network: torch.nn.Module, sets: Sets, which: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(*sets.batch(which)).double().numpy()


def singles(network: torch.nn.Module, sets: Sets, which: np.ndarray) -> np.ndarray:
    """Sum of the predicted costs of each set's tables alone, float[M, 2] ms."""
    with torch.no_grad():
        x, amounts, owner, kinds = sets.batch(which)
        alone = network(x, amounts, torch.arange(len(x)), kinds[owner]).double().numpy()
    total = np.zeros((len(which), 2))
    np.add.at(total, owner.numpy(), alone)
    return total


def mapped_singles(network: torch.nn.Module, sets: Sets, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The linear map of the sum, with the least relative error on the training sets."""
    known, wanted = singles(network, sets, train), singles(network, sets, test)
    mapped = np.empty((len(test), 2))
    for phase in (0, 1):
        actual = sets.times[train, phase]
        terms = np.stack([np.ones(len(train)), known[:, phase]], axis=1)
        map_, *_ = np.linalg.lstsq(terms / actual[:, None], np.ones(len(train)), rcond=None)
        mapped[:, phase] = map_[0] + map_[1] * wanted[:, phase]
    return mapped


def show(name: str, predicted: np.ndarray, actual: np.ndarray) -> None:
    relative = 100 * np.abs(predicted / actual - 1).mean(axis=0)
    both = 100 * np.abs(predicted.sum(axis=1) / actual.sum(axis=1) - 1).mean()
    ms = np.abs(predicted - actual).mean(axis=0)
    tau = kendall_tau(predicted.sum(axis=1), actual.sum(axis=1))
    print(
        f"  {name:<15}{relative[0]:6.2f} %{relative[1]:8.2f} %{both:8.2f} %{ms[0]:9.3f}{ms[1]:9.3f}{tau:9.4f}",
        flush=True,
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PROFILES / "cpu-epyc"
    torch.set_num_threads(1)
    steady = [m for m in read_campaign(folder) if not m.disturbed]
    first = [m for m in steady if not is_repeat(m.index)]
    sets = as_sets(first)
    held_out = np.array([is_held_out(m.index) for m in first])
    small = np.array([len(m.workload.tables) <= SMALL for m in first])
    twice = measured_twice(steady)
    print(f"{folder.name}: {len(steady)} undisturbed measurements, of which {len(twice)} are of sets measured before")
    larger = [pair for pair in twice if len(pair[0].workload.tables) > SMALL]
    extrapolated = f"trained on sets of {SMALL} tables and fewer, tested on larger ones"
    for title, train, test, pairs in (
        ("sets of unseen tables", ~held_out, held_out, twice),
        (extrapolated, ~held_out & small, held_out & ~small, larger),
    ):
        train, test = np.flatnonzero(train), np.flatnonzero(test)
        print(f"\n{title}: {len(train)} training sets, {len(test)} test sets")
        print(f"  {'':<15}{'forward':>8}{'backward':>10}{'both':>10}{'MAE fwd, bwd ms':>18}{'tau':>9}")
        show("measured again", *(ratios(times) * reference_ms(steady) for times in zip(*pairs, strict=True)))
        certified = trained(Network, sets, train, 1e-2)
        actual = sets.times[test]
        show("certified", predictions(certified, sets, test), actual)
        show("unconstrained", predictions(trained(Unconstrained, sets, train, 5e-3), sets, test), actual)
        show("AutoShard", predictions(trained(AutoShard, sets, train, 5e-3), sets, test), actual)
        show("sum of singles", mapped_singles(certified, sets, train, test), actual)


if __name__ == "__main__":
    main()
