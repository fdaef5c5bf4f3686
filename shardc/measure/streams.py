"""Index streams: what a training step looks up, drawn to a table's rows, pooling and access distribution."""

from __future__ import annotations

import numpy as np
import torch

from shardc.access import BIN_COUNTS
from shardc.problem import Floats
from shardc.spec import Bins, Zipf

_SCATTER = 2_654_435_761  # Knuth's multiplicative constant: a prime, so it is coprime to any smaller number of rows


def draw_bag_lengths(pooling: float, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Lookups of each sample, int64[batch]: `pooling` on average, whole numbers next to it."""
    floor = int(pooling)
    extra = torch.rand(batch, generator=generator, device=generator.device) < (pooling - floor)
    return extra.long() + floor


def draw_indices(access: Zipf | Bins, rows: int, lookups: int, generator: torch.Generator) -> torch.Tensor:
    """`lookups` row indices, int64, in random order, distributed as `access` says.

    Popular rows are scattered over the table, as hashing scatters them in practice.
    """
    if isinstance(access, Zipf):
        rank = _zipf_ranks(access.exponent, rows, lookups, generator)
    else:
        rank = _binned_ranks(np.asarray(access.shares), rows, lookups, generator)
    return (rank * _SCATTER) % rows


def _zipf_ranks(exponent: float, rows: int, lookups: int, generator: torch.Generator) -> torch.Tensor:
    """Ranks 0 ... rows - 1 by inversion of the law of `shardc.access.zipf_mass`."""
    uniform = torch.rand(lookups, generator=generator, device=generator.device, dtype=torch.float64)
    power = 1.0 - exponent
    if abs(power) < 1e-9:
        rank = torch.expm1(uniform * np.log1p(rows))
    else:
        rank = torch.expm1(torch.log1p(uniform * np.expm1(power * np.log1p(rows))) / power)
    return rank.long().clamp_(0, rows - 1)


def _binned_ranks(shares: Floats, rows: int, lookups: int, generator: torch.Generator) -> torch.Tensor:
    """Ranks whose access counts fill the 17 bins: most accessed first, so popular rows are the same in every batch."""
    unique = min(rows, lookups, max(1, round(lookups / float(shares @ BIN_COUNTS))))
    if lookups == 0:
        return torch.empty(0, dtype=torch.long, device=generator.device)
    # Rounding the running sums, not the numbers, keeps each within one and the totals exact.
    size = np.diff(np.floor(np.cumsum(shares[::-1]) / shares.sum() * unique + 0.5), prepend=0.0).astype(np.int64)
    wanted = np.repeat(BIN_COUNTS[::-1], size)
    spare = lookups - len(wanted)  # every row is accessed once; the rest in proportion to what its bin has beyond that
    beyond = np.cumsum(wanted - 1.0)
    scale = spare / beyond[-1] if beyond[-1] > 0 else 0.0
    counts = 1 + np.diff(np.floor(beyond * scale + 0.5), prepend=0.0).astype(np.int64)
    counts[0] += lookups - counts.sum()  # bins that say "once" for fewer rows than there are accesses
    ranks = torch.repeat_interleave(torch.from_numpy(counts)).to(generator.device)
    return ranks[torch.randperm(lookups, generator=generator, device=generator.device)]
