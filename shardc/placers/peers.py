"""AutoShard's and DreamShard's policies, to compare with; trained by `shardc train policy --kind`.

AutoShard (KDD 2022, 2208.06399, section 4): tables in descending predicted cost; a two-layer LSTM over the tables so
far is the state; a device is the sum of its tables' representations, its predicted cost and its memory, and is scored
together with the state. DreamShard (NeurIPS 2022, 2210.02023, section 3.2): no recurrence, costs by phase in a device's
representation, and a linear score. Both place tables as whole as they may be, and mask devices without room.

What differs from the papers: table features are scaled alike in all tasks, costs and memory are ratios to an even load
and to the limit, so that weights serve more than one device and batch; AutoShard's table representations are learned
with the policy instead of being those of its cost network, and shardc's cost models take that one's place.

The networks are written once, in operations that numpy arrays and torch tensors share: placing evaluates them with the
one, training with the other (`shardc.learn.train_policy`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shardc.placers.episode import FEATURES, Played, Task
from shardc.placers.policy import load_weights
from shardc.problem import Bools, Floats, Ints, Problem

Array = Any
"""A numpy array or a torch tensor."""
Weights = Mapping[str, Array]

TABLE_FEATURES = 21
_HIDDEN, _TABLE, _STATE = 128, 32, 64
_COST = [FEATURES.index("total_before"), FEATURES.index("memory_after")]
_PHASES = [FEATURES.index(name) for name in ("forward_after", "backward_after", "exchange_after")]


def table_features(problem: Problem) -> Floats:
    """float[B, 21]: dim, rows, pooling and size (logarithms), and 17 access bins, of each block's first option.

    Of a group of tables: the sums of rows, size and pooling, and the means of the others.
    """
    shards, found = problem.shards, []
    for option in problem.first_option:
        members = list(problem.unit_shards[problem.first_unit[option]])
        rows, dim, pooling = shards.rows[members], shards.dim[members], shards.pooling[members]
        size = float((rows * dim).sum())
        figures = [
            np.log2(dim.mean()) - 5.0,
            (np.log2(max(float(rows.sum()), 1.0)) - 16.0) / 4.0,
            (np.log2(max(float(pooling.sum()), 1e-3)) - 2.0) / 2.0,
            (np.log2(max(size, 1.0)) - 21.0) / 4.0,
        ]
        found.append([*figures, *shards.bins[members].mean(axis=0)])
    return np.array(found)


# --- AutoShard --------------------------------------------------------------------------------------------------------


def autoshard_initial(rng: np.random.Generator) -> dict[str, Floats]:
    """AutoShard's weights before training."""
    layers = {
        "table.0": (TABLE_FEATURES, _HIDDEN),
        "table.1": (_HIDDEN, _TABLE),
        "device": (_TABLE + len(_COST), _STATE),
        "head.0": (3 * _STATE, 128),
        "head.1": (128, 128),
        "head.2": (128, 64),
        "head.3": (64, 1),
    }
    weights = _layers(rng, layers)
    for layer, inputs in enumerate((_TABLE + 1, _STATE)):
        weights |= _layers(rng, {f"lstm.{layer}": (inputs + _STATE, 4 * _STATE)})
    return weights


def _autoshard_states(w: Weights, encoded: Array, left: Array, zeros: Array) -> list[Array]:
    """The LSTM's state after each table: T arrays [N, 64], from [N, T, 32] and [N, T], the share not placed yet."""
    hidden, cell, states = [zeros, zeros], [zeros, zeros], []
    for step in range(encoded.shape[1]):
        x, share = encoded[:, step], left[:, step, None]
        for layer in (0, 1):
            kernel, width = w[f"lstm.{layer}.weight"], x.shape[-1]
            gates = x @ kernel[:, :width].T + hidden[layer] @ kernel[:, -_STATE:].T + w[f"lstm.{layer}.bias"]
            if layer == 0:
                gates = gates + share * kernel[:, width]
            enter, forget, output = (_sigmoid(gates[..., i * _STATE : (i + 1) * _STATE]) for i in range(3))
            cell[layer] = forget * cell[layer] + enter * _tanh(gates[..., 3 * _STATE :])
            hidden[layer] = x = output * _tanh(cell[layer])
        states.append(hidden[1])
    return states


def _autoshard_scores(w: Weights, state: Array, held: Array, features: Array) -> Array:
    """Scores [..., D] from the state [..., 1, 64], sums of tables [..., D, 32] and features [..., D, F]."""
    kernel = w["device.weight"]
    costs = features[..., _COST] @ kernel[:, _TABLE:].T
    device = (held @ kernel[:, :_TABLE].T + costs + w["device.bias"]).clip(min=0)
    kernel = w["head.0.weight"]
    of_state, of_device, of_both = (kernel[:, i * _STATE : (i + 1) * _STATE].T for i in range(3))
    x = (state @ of_state + device @ of_device + (state * device) @ of_both + w["head.0.bias"]).clip(min=0)
    x = (x @ w["head.1.weight"].T + w["head.1.bias"]).clip(min=0)
    x = (x @ w["head.2.weight"].T + w["head.2.bias"]).clip(min=0)
    return (x @ w["head.3.weight"].T + w["head.3.bias"])[..., 0]


def autoshard_replayed(w: Weights, tasks: Sequence[Task], played: Played, like: Any) -> Array:
    """Scores of recorded games, [T, N, R, D]."""
    encoded = _encoded(w, like(_tables(tasks)))
    states = _autoshard_states(w, encoded, like(_left(tasks)), like(np.zeros((len(tasks), _STATE))))
    features, held = like(played.features), _held(encoded, like(played.devices.astype(np.float32)))
    return _stack([
        _autoshard_scores(w, state[:, None, None], of_step, seen)
        for state, of_step, seen in zip(states, held, features, strict=True)
    ], like)  # fmt: skip


# --- DreamShard -------------------------------------------------------------------------------------------------------


def dreamshard_initial(rng: np.random.Generator) -> dict[str, Floats]:
    """DreamShard's weights before training."""
    layers = {
        "table.0": (TABLE_FEATURES, _HIDDEN),
        "table.1": (_HIDDEN, _TABLE),
        "cost.0": (len(_PHASES), 64),
        "cost.1": (64, _TABLE),
        "score": (2 * _TABLE, 1),
    }
    return _layers(rng, layers)


def _dreamshard_scores(w: Weights, held: Array, features: Array) -> Array:
    """Scores [..., D] from sums of tables with the one at hand [..., D, 32] and features [..., D, F]."""
    costs = (features[..., _PHASES] @ w["cost.0.weight"].T + w["cost.0.bias"]).clip(min=0)
    costs = costs @ w["cost.1.weight"].T + w["cost.1.bias"]
    kernel = w["score.weight"][0]
    return held @ kernel[:_TABLE] + costs @ kernel[_TABLE:] + w["score.bias"]


def dreamshard_replayed(w: Weights, tasks: Sequence[Task], played: Played, like: Any) -> Array:
    """Scores of recorded games, [T, N, R, D]."""
    encoded = _encoded(w, like(_tables(tasks)))
    held = _held(encoded, like(played.devices.astype(np.float32)))
    now = encoded.swapaxes(0, 1)[:, :, None, None]
    return _dreamshard_scores(w, held + now, like(played.features))


# --- Both -------------------------------------------------------------------------------------------------------------


@dataclass
class _Peer:
    """A policy with a memory of which tables each device holds; a `shardc.placers.episode.Scorer`."""

    weights: Mapping[str, Floats]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def start(self, tasks: Sequence[Task], rollouts: int) -> None:
        """A new game: no device holds anything. In single precision, which halves the time of training."""
        self._single = {name: array.astype(np.float32) for name, array in self.weights.items()}
        self._encoded = _encoded(self._single, _tables(tasks).astype(np.float32))
        devices = tasks[0].judge.problem.cluster.devices
        self._held = np.zeros((len(tasks), rollouts, devices, _TABLE), dtype=np.float32)

    def placed(self, step: int, devices: Bools) -> None:
        """Add the table's representation to the devices that hold it now."""
        self._held += devices[..., None] * self._encoded[:, step][:, None, None]

    def _of(self, devices: Ints) -> Floats:
        """Sums of representations on devices int[N, R, C]: float32[N, R, C, 32]."""
        n, r = np.ogrid[: devices.shape[0], : devices.shape[1]]
        return np.asarray(self._held[n[..., None], r[..., None], devices])


@dataclass
class AutoShard(_Peer):
    """AutoShard's policy with trained weights, by name (see `autoshard_initial`)."""

    def start(self, tasks: Sequence[Task], rollouts: int) -> None:
        """A new game: the states do not depend on where tables go."""
        super().start(tasks, rollouts)
        zeros, left = np.zeros((len(tasks), _STATE), dtype=np.float32), _left(tasks).astype(np.float32)
        self._states = _autoshard_states(self._single, self._encoded, left, zeros)

    def scores(self, step: int, features: Floats, mask: Bools, devices: Ints) -> Floats:
        """Scores of devices."""
        state, seen = self._states[step][:, None, None], features.astype(np.float32)
        return np.asarray(_autoshard_scores(self._single, state, self._of(devices), seen), dtype=np.float64)


@dataclass
class DreamShard(_Peer):
    """DreamShard's policy with trained weights, by name (see `dreamshard_initial`)."""

    def scores(self, step: int, features: Floats, mask: Bools, devices: Ints) -> Floats:
        """Scores of devices."""
        now = self._encoded[:, step][:, None, None]
        held, seen = self._of(devices) + now, features.astype(np.float32)
        return np.asarray(_dreamshard_scores(self._single, held, seen), dtype=np.float64)


def load_peer(path: Path, kind: str) -> AutoShard | DreamShard:
    """Read the weights of `autoshard` or `dreamshard`.

    Raises:
        DiagnosticError: SH602 when the file is missing, damaged, altered, of another format or kind.
    """
    initial = {"autoshard": autoshard_initial, "dreamshard": dreamshard_initial}[kind]
    shapes = {name: array.shape for name, array in initial(np.random.default_rng(0)).items()}
    weights, metadata = load_weights(path, kind, shapes)
    return (AutoShard if kind == "autoshard" else DreamShard)(weights, metadata)


def _tables(tasks: Sequence[Task]) -> Floats:
    """float[N, T, 21] in the order that tables are placed; zeros where a task has fewer."""
    found = np.zeros((len(tasks), max(len(task.order) for task in tasks), TABLE_FEATURES))
    for features, task in zip(found, tasks, strict=True):
        features[: len(task.order)] = table_features(task.judge.problem)[task.order]
    return found


def _left(tasks: Sequence[Task]) -> Floats:
    """float[N, T]: the share of tables that is still to be placed, the one at hand included."""
    found = np.zeros((len(tasks), max(len(task.order) for task in tasks)))
    for share, task in zip(found, tasks, strict=True):
        share[: len(task.order)] = np.linspace(1.0, 0.0, len(task.order), endpoint=False)
    return found


def _encoded(w: Weights, tables: Array) -> Array:
    """Representations [..., 32] of tables [..., 21]."""
    hidden = (tables @ w["table.0.weight"].T + w["table.0.bias"]).clip(min=0)
    return hidden @ w["table.1.weight"].T + w["table.1.bias"]


def _held(encoded: Array, devices: Array) -> Array:
    """Sums of representations on each device before each step, [T, N, R, D, 32]."""
    added = devices[..., None] * encoded.swapaxes(0, 1)[:, :, None, None]
    return added.cumsum(0) - added


def _stack(arrays: Sequence[Array], like: Any) -> Array:
    """Arrays as one, along a new first axis, whatever they are."""
    if isinstance(arrays[0], np.ndarray):
        return np.stack(arrays)
    import torch

    return torch.stack(list(arrays))


def _layers(rng: np.random.Generator, layers: Mapping[str, tuple[int, int]]) -> dict[str, Floats]:
    weights: dict[str, Floats] = {}
    for name, (inputs, outputs) in layers.items():
        weights[f"{name}.weight"] = rng.uniform(-1.0, 1.0, (outputs, inputs)) / np.sqrt(inputs)
        weights[f"{name}.bias"] = np.zeros(outputs)
    return weights


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + math.e ** (-x.clip(min=-30.0, max=30.0)))


def _tanh(x: Array) -> Array:
    return 2.0 * _sigmoid(2.0 * x) - 1.0
