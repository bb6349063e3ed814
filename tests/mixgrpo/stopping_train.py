"""Trains until some iterations are done and stops: python -m tests.mixgrpo.stopping_train CONFIG
ITERATIONS OUT, on as many ranks as it was launched with."""

import sys
from pathlib import Path

from mixgrpo import train
from mixgrpo.compute import ranks
from mixgrpo.settings.configfile import load_config
from mixgrpo.training.trainer import Metrics, Trainer


def main() -> None:
    config, iterations, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    own = ranks.join()
    done = 0
    iterate = Trainer.iterate

    def counted(trainer: Trainer, iteration: int) -> Metrics:
        nonlocal done
        line = iterate(trainer, iteration)
        done = iteration + 1
        return line

    def enough() -> bool:
        return done >= iterations and own.rank == own.size - 1  # any rank may be the one

    Trainer.iterate = counted  # type: ignore[method-assign]
    assert train.run(load_config(config), out, enough, own) == "stopped"
    ranks.leave()


if __name__ == "__main__":
    main()
