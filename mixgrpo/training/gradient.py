"""The gradient of one update while it accumulates, step by step of the window.

It is the sum over steps, or the mean of the steps' gradients, each scaled to norm 1
(`objective.step_gradient: unit`). Of the sum it can be measured whether the window's first and last
step pull the weights in opposite directions.
"""

import math

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import RepeatableError


class Gradient:
    """Lies in the `grad` of `parameters`; all ranks must call its methods.

    `slots`: into how many parts the update's steps fall; `unit`: whether each part's gradient is
    scaled to norm 1; `compare`: whether the first part's is compared with the last one's.
    """

    def __init__(
        self,
        parameters: dict[str, Parameter],
        ranks: Ranks,
        slots: int,
        unit: bool = False,
        compare: bool = False,
    ) -> None:
        self._named, self._ranks, self._slots = parameters, ranks, slots
        self._parameters = list(parameters.values())
        self._unit, self._compare = unit, compare and not unit and slots > 1
        self._first: list[Tensor] = []
        self._before_last: list[Tensor] = []
        self._scaled: list[Tensor] = []

    def after(self, slots: list[int]) -> None:
        """Call it when these slots of all images are backpropagated."""
        if self._unit:
            self._scale()
        elif self._compare and slots == [0]:
            self._first = [g.clone() for g in self._now()]
        if self._compare and slots == [self._slots - 2]:
            now = self._first if self._slots == 2 else [g.clone() for g in self._now()]
            self._before_last = now

    def finish(self, limit: float, where: str) -> tuple[float, float | None]:
        """Sum it over the ranks and clip it to norm `limit`: its norm before that, and the cosine
        between the first and the last slot's, None where it is not measured or one of them is zero.

        RepeatableError beginning with `where` for a gradient that is not finite.
        """
        cosine = self._cosine() if self._compare else None
        if self._unit:
            gradients = self._scaled
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
        else:
            gradients = self._now()
            self._ranks.sum_gradients(gradients)
        norm = get_total_norm(gradients)
        length = float(self._ranks.whole(norm))
        if not math.isfinite(length):
            raise RepeatableError(
                f"{where}: the gradient of {self._not_finite()} is not finite (norm {length}); a "
                "smaller optimizer.lr or sampler.eta usually helps"
            )
        clip_grads_with_norm_(self._parameters, limit, norm)
        return length, cosine

    def _now(self) -> list[Tensor]:
        """Of every parameter: zeros where this rank's images did not reach it."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self._parameters if p.grad is not None]

    def _scale(self) -> None:
        """Add the gradient of one slot at norm 1 / slots, and begin the next from zero."""
        gradients = self._now()
        self._ranks.sum_gradients(gradients)
        norm = get_total_norm(gradients)
        # A step without noise has none; one that is not finite must reach the check for it.
        scale = 1 / self._slots if float(self._ranks.whole(norm)) == 0 else 1 / (norm * self._slots)
        scaled = [g * scale for g in gradients]
        if not self._scaled:
            self._scaled = scaled
        else:
            torch._foreach_add_(self._scaled, scaled)
        for parameter in self._parameters:
            parameter.grad = None

    def _cosine(self) -> float | None:
        """Below 0 the first and the last step pull the weights in opposite directions."""
        first = self._first
        last = [g - e for g, e in zip(self._now(), self._before_last, strict=True)]
        self._ranks.sum_gradients([*first, *last])
        product = torch.stack([(a * b).sum() for a, b in zip(first, last, strict=True)]).sum()
        values = (product, get_total_norm(first), get_total_norm(last))
        numerator, *lengths = (float(self._ranks.whole(value)) for value in values)
        denominator = math.prod(lengths)
        cosine = numerator / denominator if denominator else math.nan
        return cosine if math.isfinite(cosine) else None

    def _not_finite(self) -> str:
        """The first parameter whose gradient is not finite."""
        for name, parameter in self._named.items():
            gradient = parameter.grad
            if gradient is not None and not bool(self._ranks.whole(gradient).isfinite().all()):
                return name
        return "all weights together"
