"""What may be mixed in one call: the rules for dtype and device, and the checks on values that cost nothing."""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def unify(where: str, *tensors: Tensor, wide: tuple[Tensor | None, ...] = ()) -> tuple[Tensor, ...]:
    """Check that `tensors` share dtype and device; under autocast cast them to its dtype, as PyTorch's matmul does.

    `wide` (gates, states, learned offsets) may also be float32 beside half precision, and stays what it is.
    """
    first = tensors[0]
    device = first.device.type
    if torch.is_autocast_enabled(device) and first.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        tensors = tuple(x.to(dtype) for x in tensors)
    dtype = tensors[0].dtype
    if dtype not in FLOATS:
        raise ValueError(f"{where}: expected float16, bfloat16, float32 or float64, got {dtype}")
    if any(x.dtype != dtype for x in tensors):
        came = ", ".join(str(x.dtype).removeprefix("torch.") for x in tensors)
        raise ValueError(f"{where}: dtypes do not mix, expected one dtype, got {came}; cast them with .to(dtype)")
    allowed = {dtype, torch.promote_types(dtype, torch.float32)}
    for x in wide:
        if x is not None and x.dtype not in allowed:
            names = " or ".join(sorted(str(d).removeprefix("torch.") for d in allowed))
            raise ValueError(f"{where}: gates, biases and states must be {names} beside {dtype}, got {x.dtype}")
    for x in (*tensors, *wide):
        if x is not None and x.device != first.device:
            raise ValueError(f"{where}: all tensors must be on one device, got {first.device} and {x.device}")
    return tensors


def can_look(x: Tensor) -> bool:
    """Values are checked where looking is free: not on a GPU (it would stall the queue), not while tracing."""
    return (
        not torch.compiler.is_compiling() and x.device.type == "cpu" and not isinstance(x, torch._subclasses.FakeTensor)
    )


def check_log_decay(where: str, log_decay: Tensor | None) -> None:
    if log_decay is None or not can_look(log_decay):
        return
    worst = log_decay.detach().max().item()  # NaN if there is one
    if not worst <= 0:
        raise ValueError(f"{where}: log_decay must be <= 0 (decay = exp(log_decay) <= 1), got {worst:.4g}")
