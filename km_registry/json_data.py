"""Data as JSON can say it."""

from __future__ import annotations

import math
from typing import Any


def finite(value: Any) -> Any:
    """JSON data with null for every number that is not finite, which JSON cannot say."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: finite(one) for key, one in value.items()}
        case list() | tuple():
            return [finite(one) for one in value]
        case _:
            return value
