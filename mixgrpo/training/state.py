"""What changes while a run trains: the weights, their average and the optimizer; as a checkpoint
holds it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.settings.config import OptimizerConfig
from mixgrpo.training.optimizer import load_state, make_optimizer, state_tensors


class State:
    """Of one run; this process's part of it where weights are sharded."""

    def __init__(
        self, config: OptimizerConfig, parameters: dict[str, Parameter], ranks: Ranks
    ) -> None:
        self.parameters = parameters
        self.average = {k: p.detach().clone() for k, p in parameters.items()}
        self.optimizer = make_optimizer(config, parameters.values())
        self._name, self._ranks = config.name, ranks

    def step(self, ema_decay: float) -> None:
        """Move the weights by their gradients, and the average after them.

        ConfigError where shards are more than the optimizer understands.
        """
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if not self._ranks.sharded:
                raise
            raise ConfigError(
                f"optimizer.name {self._name}: cannot step sharded weights "
                f"({str(error).splitlines()[0]}); use adamw, or copies instead of FSDP2"
            ) from error
        with torch.no_grad():
            average, weights = list(self.average.values()), tuple(self.parameters.values())
            torch._foreach_lerp_(average, weights, 1 - ema_decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the policy has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Weights and averages change places, one by one: no whole copy is held."""
        for name, parameter in self.parameters.items():
            weights = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(weights)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that a checkpoint must hold, by group and name; whole, on the CPU of the first rank.
        All ranks must ask for it."""
        return {
            "weights": {k: self._kept(p) for k, p in self.parameters.items()},
            "average": self.averages(),
            "optimizer": state_tensors(self.optimizer, self.parameters, self._ranks.first),
        }

    def averages(self) -> dict[str, Tensor]:
        """The averaged weights, as `tensors` gives them."""
        return {k: self._kept(p) for k, p in self.average.items()}

    def _kept(self, tensor: Tensor) -> Tensor:
        """Whole on the first rank; the others, which write nothing, help and let go of it."""
        whole = self._ranks.whole(tensor)
        return whole if self._ranks.first else whole.new_empty(0)

    def load_tensors(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Take over the state of a checkpoint of the same model. RunError for another's."""
        for group in ("weights", "average", "optimizer"):
            if group not in tensors:
                raise RunError(
                    f"the newest checkpoint lacks its {group}, and its manifest does not name it; "
                    "remove its folder and run the same command again"
                )
        weights, average = tensors["weights"], tensors["average"]
        for name, parameter in self.parameters.items():
            if name not in weights or weights[name].shape != parameter.shape:
                raise RunError(f"the checkpoint is of another model: {name} does not fit")
        for name, parameter in self.parameters.items():
            self._ranks.put(weights[name], parameter)
            self._ranks.put(average[name], self.average[name])
        load_state(self.optimizer, self.parameters, tensors["optimizer"])
