"""What is measured: a set of tables that one fused operator serves, and the times that came out."""

from __future__ import annotations

from dataclasses import dataclass

from shardc.problem import BYTES_PER_ELEMENT
from shardc.spec import Bins, Zipf


@dataclass(frozen=True, slots=True)
class Load:
    """One table as the benchmark runs it."""

    rows: int
    dim: int
    pooling: float
    access: Zipf | Bins


@dataclass(frozen=True, slots=True)
class Workload:
    """A set of tables that one fused operator serves.

    Attributes:
        tables: the tables.
        batch: samples of one step.
        weights: dtype of the weights, fp32 or fp16.
        optimizer: name of the sparse optimizer that the backward operator applies.
    """

    tables: tuple[Load, ...]
    batch: int
    weights: str = "fp32"
    optimizer: str = "sgd"

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(t.rows * t.dim for t in self.tables) * BYTES_PER_ELEMENT[self.weights]


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one workload: ratios to the reference set and its own time, medians over `runs` runs.

    Spreads are half the interquartile range of the ratios, relative to their median.
    """

    runs: int
    forward_ratio: float
    backward_ratio: float
    forward_spread: float
    backward_spread: float
    reference_forward_ms: float
    reference_backward_ms: float

    @property
    def reference_ms(self) -> float:
        """The reference set's own forward and backward time."""
        return self.reference_forward_ms + self.reference_backward_ms
