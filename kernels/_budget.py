"""How far an implementation may be from the reference: the rule that the tests and `subquad check` share."""

import math

import torch
from torch import Tensor

ROUNDINGS = 16  # eps of the largest value that are granted whatever the reference's own error


def error_and_budget(actual: Tensor, exact: Tensor, rounded: Tensor, eps: float) -> tuple[float, float]:
    """Largest error of `actual`, and what it may be: twice the reference's own in the same dtype, and some roundings.

    Args:
        actual: what is judged.
        exact: the reference in float64.
        rounded: the reference in the dtype of the inputs.
        eps: of that dtype.
    """
    if actual.shape != exact.shape or not torch.isfinite(actual).all():
        return math.inf, 0.0
    if exact.numel() == 0:
        return 0.0, 0.0
    error, own = ((x.double() - exact).abs().max().item() for x in (actual, rounded))
    return error, 2 * own + ROUNDINGS * eps * exact.abs().max().item()


def rounded_to_float64(exact: Tensor, single: Tensor) -> Tensor:
    """What stands for the reference rounded to float64, which would be `exact` itself and so without an error.

    How far the order of a sum moves it depends on its terms, not on the result: so its error in float32 is taken,
    smaller by the ratio of both eps.
    """
    shrink = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    return exact + shrink * (single.double() - exact)


def over_budget(actual: Tensor, exact: Tensor, rounded: Tensor, eps: float) -> str | None:
    """None if `actual` is near enough, else what is wrong with it."""
    if actual.shape != exact.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    error, budget = error_and_budget(actual, exact, rounded, eps)
    if math.isinf(error):
        return "not finite"
    return None if error <= budget else f"error {error:.2e} is over the budget {budget:.2e}"
