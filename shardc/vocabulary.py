"""What specs and plans have in common: whoever looks at plans alone need not import what reads specs."""

from __future__ import annotations

import re
from typing import Literal

ShardingType = Literal[
    "table_wise", "column_wise", "table_column_wise", "row_wise", "table_row_wise", "grid_shard", "data_parallel"
]
Precision = Literal["fp32", "fp16", "bf16"]

MAX_DEVICES = 65536
MAX_TABLES = 2**17

CONFLICT = re.compile(r"^(?:<{7}|={7}|>{7})(?: |\r?$)", re.MULTILINE)
"""A mark of git's where a merge needs somebody to decide."""
