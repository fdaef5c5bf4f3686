"""Compile a recommender model's embedding tables and a cluster into a sharding plan that TorchRec runs.

import shardc

plan = shardc.compile("model.toml")
plan.score.step_time_ms
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardc.pipeline import compile
    from shardc.plan import read_plan as load_plan

__version__ = "0.1.0"
__all__ = ["__version__", "compile", "load_plan"]


def __getattr__(name: str) -> Any:
    # Importing shardc must stay cheap: `shardc --help` does not need numpy.
    if name == "compile":
        from shardc.pipeline import compile

        return compile
    if name == "load_plan":
        from shardc.plan import read_plan

        return read_plan
    raise AttributeError(f"module 'shardc' has no attribute {name!r}")
