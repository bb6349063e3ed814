"""Encodes the prompts of a run ahead, so that text encoders can go before training begins."""

import logging
import time

from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError
from mixgrpo.models.load import prepare
from mixgrpo.models.protocol import Policy

log = logging.getLogger(__name__)

_SHARED_DISK_S = 60.0
"""How long a file of another machine may take until it is seen."""


def encode_ahead(policy: Policy, prompts: list[str], ranks: Ranks) -> None:
    """Have every prompt encoded, each rank its share. A collective; nothing for a policy that
    encodes prompts when it is asked.

    ConfigError where this process does not see what the other ranks have encoded.
    """
    if not hasattr(policy, "prepare"):
        return
    say = log.info if ranks.first else log.debug
    prepare(policy, prompts, say, (ranks.rank, ranks.size))
    ranks.wait()
    unprepared = getattr(policy, "unprepared", None)
    if unprepared is None:
        return
    end = time.monotonic() + _SHARED_DISK_S
    while lacking := unprepared(prompts):
        if time.monotonic() > end:
            raise ConfigError(
                f"prompts.embeddings: {len(lacking)} prompts that were encoded are not seen by all "
                "processes; name a folder that all machines share"
            )
        time.sleep(1.0)
