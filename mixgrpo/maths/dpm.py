"""DPM-Solver++ of orders 1 to 3, the solver of MixGRPO-Flash (Lu et al. 2022, arXiv 2211.01095).

A multistep solver in data prediction: with alpha = 1 - sigma and lambda = log alpha - log sigma it
uses the x0 predictions of up to two earlier steps. Order 1 is Euler on the flow ODE (DDIM).
"""

import math
from typing import Literal

from torch import Tensor

from mixgrpo.maths.steps import wide


class DPMSolver:
    """DPM-Solver++(order M), multistep, with its history of x0 predictions.

    `order`: 1, 2 or 3. `variant`: "midpoint" or "heun", for the second order. The last step, to
    sigma = 0, is first order and returns x0; below 15 steps a third-order solver takes the last
    but one at second order.

    The third-order update is the published one. Its D2 is half of h^2 m'', so its error falls with
    the square of the step only.
    """

    def __init__(
        self, order: Literal[1, 2, 3], variant: Literal["midpoint", "heun"] = "midpoint"
    ) -> None:
        if order not in (1, 2, 3) or variant not in ("midpoint", "heun"):
            raise ValueError(f"no DPM-Solver++ of order {order}, variant {variant}")
        self.order = order
        self.variant = variant
        self._history: list[Tensor] = []

    def reset(self) -> None:
        """Forget the history: the next step is first order."""
        self._history.clear()

    def observe(self, x0: Tensor) -> None:
        """Add the x0 prediction [B, ...] of a step that another solver takes to the history."""
        self._history = [wide(x0), *self._history][: self.order - 1]

    def step(self, x: Tensor, x0: Tensor, sigmas: Tensor, index: int) -> Tensor:
        """The sample at sigmas[index + 1], from x [B, ...] and the prediction x0 [B, ...] at
        sigmas[index]; in the dtype of x.

        The history must hold the steps index - 1 and index - 2 of the same grid, newest first.
        """
        x0 = wide(x0)
        steps = len(sigmas) - 1
        order = min(self.order, len(self._history) + 1)
        if index == steps - 1:
            order = 1
        elif index == steps - 2 and steps < 15:
            order = min(order, 2)
        sigma, sigma_next = float(sigmas[index]), float(sigmas[index + 1])
        lam = [_log_snr(float(sigmas[index - k])) for k in range(order)]
        h = _log_snr(sigma_next) - lam[0]
        phi, alpha_next = math.expm1(-h), 1 - sigma_next
        result = (sigma_next / sigma) * wide(x) - alpha_next * phi * x0
        if order == 2:
            r0 = (lam[0] - lam[1]) / h
            d1 = (x0 - self._history[0]) / r0
            if self.variant == "midpoint":
                result = result - 0.5 * alpha_next * phi * d1
            else:
                result = result + alpha_next * (phi / h + 1) * d1
        elif order == 3:
            r0, r1 = (lam[0] - lam[1]) / h, (lam[1] - lam[2]) / h
            d1a = (x0 - self._history[0]) / r0
            d1b = (self._history[0] - self._history[1]) / r1
            # r1 is infinite where the oldest prediction was made at sigma = 1.
            d1 = d1a + r0 / (r0 + r1) * (d1a - d1b)
            d2 = (d1a - d1b) / (r0 + r1)
            result = (
                result
                + alpha_next * (phi / h + 1) * d1
                - alpha_next * ((phi + h) / h**2 - 0.5) * d2
            )
        self.observe(x0)
        return result.to(x.dtype)


def _log_snr(sigma: float) -> float:
    if sigma in (0.0, 1.0):
        return math.inf if sigma == 0 else -math.inf
    return math.log1p(-sigma) - math.log(sigma)
