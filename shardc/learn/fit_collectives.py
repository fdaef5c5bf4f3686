"""Fit what a collective takes to measured times: a latency, and the bytes sent over a bandwidth.

The error is relative, as in `shardc.learn.fit_cost`. It counts squared while it is small and linearly beyond, so that a
size that was measured badly moves little. Neither the latency nor the time of a byte may be negative.
"""

from __future__ import annotations

import numpy as np

from shardc.problem import Floats, Link

_STEPS = 50
_SMALL = 0.25  # relative error up to which errors count squared
_FOLDS = 4
_FASTEST = 1e15  # bytes/s: where time does not grow with the bytes


def fit_link(sent: Floats, ms: Floats) -> Link:
    """Latency and bandwidth that predict measured times best.

    Args:
        sent: float[N], bytes that a device sends over the link.
        ms: float[N], measured times, above zero.
    """
    most = float(sent.max())
    # [N, 2]: times latency, and ms of the largest message without it, this is predicted over measured time.
    x = np.stack([1.0 / ms, sent / most / ms], axis=1)
    found = _weighted(x, np.ones(len(ms)))
    for _ in range(_STEPS):  # each least squares under weights that make the last one's large errors count linearly
        found = _weighted(x, _SMALL / np.maximum(np.abs(x @ found - 1.0), _SMALL))
    latency_ms, most_ms = map(float, found)
    return Link(latency_ms, 1e3 * most / max(most_ms, 1e3 * most / _FASTEST))


def held_out_error(sent: Floats, ms: Floats) -> float:
    """Mean relative error on points that the fit has not seen: each is held out once, every fourth one at a time."""
    fold = np.arange(len(ms)) % _FOLDS
    errors = np.empty(len(ms))
    for number in range(_FOLDS):
        out = fold == number
        link = fit_link(sent[~out], ms[~out])
        errors[out] = np.abs((link.latency_ms + 1e3 * sent[out] / link.bandwidth) / ms[out] - 1.0)
    return float(errors.mean())


def _weighted(x: Floats, weights: Floats) -> Floats:
    """Least squares of x float[N, 2] @ result = 1 under weights float[N], with neither of the two below zero."""
    a, b = x.T @ (weights[:, None] * x), x.T @ weights
    both = np.asarray(np.linalg.lstsq(a, b, rcond=None)[0])
    if (both >= 0).all():
        return both
    # Of two variables one is then zero: the better of a constant and of a line through zero.
    alone = np.diag(b / np.diag(a))
    return np.asarray(min(alone, key=lambda c: float(c @ a @ c - 2 * b @ c)))
