"""Lists as a sentence has them."""

from collections.abc import Sequence

MOST_NAMED = 20
"""A sentence names so many arms or runs, and says how many more there are."""


def listed(parts: Sequence[str], most: int = MOST_NAMED) -> str:
    """`a, b and c`; the first `most` of many, and how many more there are."""
    if len(parts) > most:
        return f"{', '.join(parts[:most])} and {len(parts) - most} more"
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
