"""The RL policy: for the block at hand it scores every sharding option at every place, with one small network.

In the spirit of AutoShard (2208.06399, section 4) and DreamShard (2210.02023): blocks in descending predicted cost, and
a place is described by what the cost model says of it before and after. The scores do not depend on the order of
devices or of tables, and one set of weights serves any number of them and any cost model (`shardc.placers.episode`).

Trained by `shardc.learn.train_policy`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import read_bytes
from shardc.judge import Judge
from shardc.placers.episode import FEATURES, Scorer, Task, play
from shardc.placers.feasible import repair
from shardc.problem import Bools, Floats, Ints, Placement

POLICY_FORMAT = "3"
METADATA = "shardc"  # one key of the file's metadata holds all of it as JSON: their order would be random

Weights = Mapping[str, Floats]
"""Arrays by name."""

_HIDDEN = 4
_LEFT = FEATURES.index("left")
_CLOSE_BY = 0.1  # standard deviation of weights of which the best of several rollouts is taken
_REPAIRS = 20_000  # candidates that are scored to make a placement fit that memory has no room for


def initial(rng: np.random.Generator) -> dict[str, Floats]:
    """Weights before training: greedy by what a unit adds to the step and to potentials that rise with the load."""
    count = len(FEATURES)
    direct = np.zeros((count, 1))
    for name, greed in (("steep_rate", 1.0), ("step_rate", 1.0), ("square_rate", 0.2), ("opened", 1.0)):
        direct[FEATURES.index(name)] = -greed
    return {
        "direct": direct,
        "early": np.zeros((count, 1)),
        "hidden.weight": rng.normal(size=(count, _HIDDEN)) / np.sqrt(count),
        "hidden.context": np.zeros((count, _HIDDEN)),
        "hidden.bias": np.zeros((1, _HIDDEN)),
        "score": np.zeros((_HIDDEN, 1)),
    }


def scores(w: Weights, features: Floats, mask: Bools) -> Floats:
    """Scores [N, R, C] of candidates from features [N, R, C, F] and bool[N, R, C]; equivariant to their order.

    A linear score that changes with the share of work that is left, and a few hidden units that also see the mean over
    all candidates. Weights may have a leading axis R: then each rollout is by weights of its own.
    """
    share = (mask / mask.sum(axis=-1, keepdims=True))[..., None, :]
    context = share @ features
    hidden = np.tanh(features @ w["hidden.weight"] + context @ w["hidden.context"] + w["hidden.bias"])
    left = features[..., _LEFT, None]
    return np.asarray((features @ w["direct"] + left * (features @ w["early"]) + hidden @ w["score"])[..., 0])


@dataclass(frozen=True)
class Policy:
    """A trained policy; a `shardc.placers.episode.Scorer`.

    Attributes:
        weights: by name, see `initial`.
        metadata: what made them.
    """

    weights: Weights
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of the weights, as plans state it."""
        return weights_digest(self.weights)

    def varied(self, rollouts: int, seed: int) -> Policy:
        """The policy with weights of their own for so many rollouts: the trained ones, and others close by."""
        rng = np.random.default_rng(seed)
        near = {name: rng.normal(0.0, _CLOSE_BY, (rollouts, *array.shape)) for name, array in self.weights.items()}
        for change in near.values():
            change[0] = 0.0
        return Policy({name: array + near[name] for name, array in self.weights.items()}, self.metadata)

    def start(self, tasks: Sequence[Task], rollouts: int) -> None:
        """Nothing to remember."""

    def scores(self, step: int, features: Floats, mask: Bools, devices: Ints) -> Floats:
        """Scores of candidates."""
        return scores(self.weights, features, mask)

    def placed(self, step: int, devices: Bools) -> None:
        """Nothing to remember."""


def place_by_policy(
    judge: Judge, offers: Sequence[Sequence[Sequence[int]]], policy: Scorer, *, rollouts: int = 1
) -> list[Placement | None]:
    """The policy's own placements: of a greedy rollout each, or the best of several by weights that differ.

    Where memory is so tight that a rollout runs out of room, it goes on regardless, and what it ends with is changed
    until it fits.

    Args:
        judge: the problem and its costs.
        offers: for each placement, for each block, the options to choose from. Several are played at once.
        policy: what chooses.
        rollouts: of a policy that has weights for so many, see `Policy.varied`.

    Returns:
        A placement for each offer; None if none was found that fits, or pins and exclusions leave no place.
    """
    played = play([Task.of(judge, options) for options in offers], policy, rollouts=rollouts)
    found = []
    for task, stuck in enumerate(played.stuck):
        best = int(np.where(stuck, np.inf, judge.step_ms(played.z[task])).argmin())
        placement = played.placement(task, best)
        if placement is not None and stuck[best]:
            placement = repair(judge.problem, placement, evaluations=_REPAIRS, seed=0)
        found.append(placement)
    return found


def load_policy(path: Path) -> Policy:
    """Read the weights of shardc's own policy.

    Raises:
        DiagnosticError: SH602 when the file is missing, damaged, altered, or of another format.
    """
    shapes = {name: array.shape for name, array in initial(np.random.default_rng(0)).items()}
    return Policy(*load_weights(path, "shardc", shapes))


def load_weights(
    path: Path, kind: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Floats], dict[str, str]]:
    """Read weights of a kind of policy, and what made them.

    Raises:
        DiagnosticError: SH602 when the file is missing, damaged, altered, of another format or kind.
    """
    try:
        content = read_bytes(path, "weights")
        arrays = safetensors.numpy.load(content)  # in random order
        weights = {name: arrays[name].astype(np.float64) for name in sorted(arrays)}
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except DiagnosticError as error:
        raise _unusable(path, kind, error.diagnostics[0].message) from error
    except OSError as error:
        raise _unusable(path, kind, (error.strerror or "unreadable").lower()) from error
    except (
        safetensors.SafetensorError,
        KeyError,
        ValueError,
        RecursionError,
    ) as error:  # KeyError: a type numpy has not
        raise _unusable(path, kind, str(error)) from error
    if not isinstance(metadata, dict) or metadata.get("format") != POLICY_FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else None
        raise _unusable(path, kind, f"format {found}, expected {POLICY_FORMAT}")
    if metadata.get("kind") != kind:
        raise _unusable(path, kind, f"a policy of kind {metadata.get('kind')}, expected {kind}")
    if {name: array.shape for name, array in weights.items()} != dict(shapes):
        raise _unusable(path, kind, "not the arrays of a policy")
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise _unusable(path, kind, "weights are not finite")
    if metadata.get("weights") != weights_digest(weights):
        raise _unusable(path, kind, "not the weights that training wrote")
    return weights, {key: str(value) for key, value in metadata.items()}


def weights_digest(weights: Weights) -> str:
    """Digest of weights as files hold them, in single precision."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], dtype="<f4")
        digest.update(f"{name} {array.shape}\n".encode() + array.tobytes())
    return "sha256:" + digest.hexdigest()


def _unusable(path: Path, kind: str, reason: str) -> DiagnosticError:
    message = f"policy weights {path}: {reason}"
    what = "" if kind == "shardc" else f" --kind {kind}"
    fix = f"make them with `shardc train policy{what}`"
    return DiagnosticError(Diagnostic("SH602", message, help=fix), exit_code=2)
