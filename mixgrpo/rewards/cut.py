"""Counts the prompts that a reward cuts."""

import warnings
from collections.abc import Iterable


class Cut:
    """Warns at the first prompt that is cut, and whenever their number has doubled."""

    def __init__(self, needed_by: str, tokens: int) -> None:
        """`needed_by`: as in "reward hps". `tokens`: what is read of a prompt."""
        self._needed_by, self._tokens = needed_by, tokens
        self._known: set[str] = set()
        self._said = 0

    def add(self, prompts: Iterable[str]) -> None:
        """Prompts that are cut; known ones do not count again."""
        self._known.update(prompts)
        if len(self._known) >= max(1, 2 * self._said):
            self._said = len(self._known)
            warnings.warn(
                f"{self._needed_by}: it reads the first {self._tokens} tokens of a prompt, as its "
                f"authors do; prompts cut so far: {self._said}, one of them {max(self._known)!r}",
                stacklevel=3,
            )
