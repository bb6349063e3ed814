"""The old name of `mixgrpo.settings.continuation`, until nothing imports it any more."""

from mixgrpo.settings.continuation import *  # noqa: F403
