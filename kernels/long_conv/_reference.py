"""long_conv, one token at a time. Read this file to learn what the op means."""

import torch
from torch import Tensor


def long_conv(
    x: Tensor, filter: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    u = x.to(compute) if pre_gate is None else pre_gate.to(compute) * x.to(compute)
    taps = filter.to(compute).T  # (l, d)
    ys = []
    for now in range(x.shape[1]):
        reach = min(now + 1, len(taps))
        past = u[:, now + 1 - reach : now + 1].flip(1)  # (b, reach, d), newest first
        y = (past * taps[:reach]).sum(dim=1)  # (b, d)
        y = y if skip is None else y + skip.to(compute) * u[:, now]
        ys.append(y if post_gate is None else post_gate[:, now].to(compute) * y)
    return torch.stack(ys, dim=1).to(x.dtype)
