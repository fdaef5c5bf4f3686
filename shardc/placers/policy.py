"""The RL policy's inference: places unit by unit, scoring every device with one small network.

In the spirit of AutoShard (2208.06399, section 4) and DreamShard (2210.02023): units in descending predicted cost, a
device is described by what the cost model says of it before and after, and memory is a mask. All descriptions are
ratios to the cost of a perfectly even load, so one set of weights serves any number of tables and devices and any cost
model. The scores do not depend on the order of devices or of tables. Trained by `shardc.learn.train_policy`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.judge import Judge, Partial
from shardc.placers.greedy import place_largest_first
from shardc.problem import Bools, Floats, Ints, Placement, Problem

POLICY_FORMAT = "1"
POLICY_FEATURES = 12
METADATA = "shardc"  # one key of the file's metadata holds all of it as JSON: their order would be random


@dataclass(frozen=True)
class Policy:
    """Weights of a trained policy.

    Attributes:
        weights: `hidden.weight` float[H, 12], `hidden.bias` float[H], `mix.weight` float[H, 2 H], `mix.bias` float[H],
            `score.weight` float[1, H], and `greed` float[1], how much the plain cost after placement counts.
    """

    weights: dict[str, Floats]

    def logits(self, features: Floats) -> Floats:
        """Scores float[..., D] of devices from features float[..., D, 12]; equivariant to the order of devices."""
        w = self.weights
        hidden = np.maximum(features @ w["hidden.weight"].T + w["hidden.bias"], 0.0)
        context = np.broadcast_to(hidden.mean(axis=-2, keepdims=True), hidden.shape)
        mixed = np.maximum(np.concatenate([hidden, context], axis=-1) @ w["mix.weight"].T + w["mix.bias"], 0.0)
        return np.asarray((mixed @ w["score.weight"].T)[..., 0] - w["greed"] * features[..., 0])


def load_policy(path: Path) -> Policy:
    """Read weights.

    Raises:
        DiagnosticError: SH602 when the file is missing, damaged, or of another format.
    """
    try:
        content = path.read_bytes()
        weights = {name: array.astype(np.float64) for name, array in safetensors.numpy.load(content).items()}
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except OSError as error:
        raise _unusable(path, (error.strerror or "unreadable").lower()) from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    if metadata.get("format") != POLICY_FORMAT:
        raise _unusable(path, f"format {metadata.get('format')}, expected {POLICY_FORMAT}")
    width = weights["hidden.bias"].size if "hidden.bias" in weights else 0
    expected = {
        "hidden.weight": (width, POLICY_FEATURES),
        "hidden.bias": (width,),
        "mix.weight": (width, 2 * width),
        "mix.bias": (width,),
        "score.weight": (1, width),
        "greed": (1,),
    }
    if {name: array.shape for name, array in weights.items()} != expected:
        raise _unusable(path, "not the arrays of a policy")
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise _unusable(path, "weights are not finite")
    return Policy(weights)


def place_by_policy(judge: Judge, options: Sequence[int], policy: Policy) -> Placement | None:
    """One greedy rollout of the policy; None if a unit fits nowhere any more."""
    even = even_load_ms(judge, options)

    problem = judge.problem

    def best_scored(partial: Partial, block: int, unit: int, fits: Bools) -> int:
        features = device_features(judge, partial.z, filled(problem, partial.memory, unit), unit, even, partial.left())
        size = problem.site_size[problem.option_site[partial.options[block]]]
        # A host is as good as the worst of its devices.
        scores = np.round(policy.logits(features), 9).reshape(-1, size).min(axis=1)
        return int(np.where(fits, scores, -np.inf).argmax())

    return place_largest_first(judge, options, judge.single_ms, best_scored)


def even_load_ms(judge: Judge, options: Sequence[int]) -> Floats:
    """What a device would cost that held an equal share of everything, float[P] ms: the scale of all features."""
    problem = judge.problem
    chosen = np.isin(problem.unit_option, options)
    sizes = problem.site_size[problem.option_site[problem.unit_option[chosen]]]
    share = problem.unit_count[chosen] * sizes / problem.cluster.devices
    by_kind = np.einsum("guk,u->gk", judge.latents[:, chosen], share)
    return np.asarray(np.maximum(1e-9, judge.phase_ms(by_kind).mean(axis=0)))


def filled(problem: Problem, memory: Floats | Ints, unit: int) -> Floats:
    """How full devices would be with a unit, float[..., D], from bytes [..., M, D]: of the memory that is fullest."""
    shares = (memory + problem.unit_memory[:, unit, None]) / np.maximum(problem.cluster.memory_limit, 1)
    return np.asarray(shares.max(axis=-2))


def device_features(judge: Judge, z: Floats, full: Floats, unit: int, even: Floats, left: float) -> Floats:
    """float[..., D, 12]: what the policy sees of each device when it places a unit.

    Times are ratios to the step time of an even load. The step time after placing is the one the judge would give if
    no other unit were left; overload and square say how the device's phases compare with an even load's.

    Args:
        judge: the problem and its costs.
        z: float[..., D, K], loads so far.
        full: float[..., D], how full devices would be with the unit.
        unit: the kind of the unit that is placed.
        even: float[P] ms, cost of an even load by phase.
        left: share of the units' cost that is still to be placed, this one included.
    """
    cluster = judge.problem.cluster
    scale = even.sum()
    before = judge.phase_ms(z)  # [..., D, P]
    after = judge.phase_ms(z + judge.latents[cluster.kind, unit])
    now = before.max(axis=-2, keepdims=True)
    total_before, total_after = before.sum(axis=-1) / scale, after.sum(axis=-1) / scale
    step_after = np.maximum(after, now).sum(axis=-1) / scale
    columns = [
        total_after,
        total_before,
        total_after - total_before,
        step_after,
        step_after - now.sum(axis=-1) / scale,
        np.maximum(after - even, 0.0).sum(axis=-1) / scale,
        (after**2 / even).sum(axis=-1) / scale,
        total_before.mean(axis=-1, keepdims=True) - total_before,
        full,
        left,
        judge.single_ms[unit] / scale,
        np.log2(z.shape[-2]) / 8.0,
    ]
    return np.stack([np.broadcast_to(column, total_after.shape) for column in columns], axis=-1)


def _unusable(path: Path, reason: str) -> DiagnosticError:
    message = f"policy weights {path}: {reason}"
    return DiagnosticError(Diagnostic("SH602", message, help="make them with `shardc train policy`"), exit_code=2)
