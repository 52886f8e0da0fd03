"""What stands around the filter in PyTorch: the gates, on a part of (b, t, d) that stays in cache, and the skip."""

import torch
from torch import Tensor

Part = tuple[slice, slice, slice]  # rows, time, channels


def gated(x: Tensor, gate: Tensor | None, part: Part, compute: torch.dtype) -> Tensor:
    """A part of x * gate in the dtype of computation."""
    x = x[part].to(compute)
    return x.contiguous() if gate is None else x * gate[part].to(compute)


def merged_taps(filter: Tensor, skip: Tensor | None, t: int, compute: torch.dtype) -> Tensor:
    """The taps that matter, (d, min(l, t)), with the skip in the first: so its gradient is that of the first tap."""
    taps = filter[:, :t].to(compute, copy=True)
    if skip is not None:
        taps[:, 0] += skip
    return taps


def write_gradients(
    du: Tensor,
    dy: Tensor,
    z: Tensor,
    x: Tensor,
    pre_gate: Tensor | None,
    part: Part,
    dx: Tensor,
    dpre: Tensor | None,
    dpost: Tensor | None,
) -> None:
    """Fill a part of dx and of the gradients of the gates that are there; du belongs to the part alone."""
    if dpost is not None:
        torch.mul(z[part], dy[part], out=dpost[part])
    if pre_gate is None:
        dx[part] = du
    else:
        torch.mul(du, pre_gate[part], out=dx[part])
        torch.mul(du, x[part], out=dpre[part])
