"""Which implementation of an op runs. A backend asked for by name runs or raises: it never falls back."""

import importlib.util
import os

import torch
from torch import Tensor

BACKENDS = ("triton", "torch", "reference")
HALF = (torch.float16, torch.bfloat16)
VENDORS = {  # packages that an op can be left to, by the op; a backend's name is the package's
    "causal_attention": {"flash_attn": HALF},
    "short_conv": {"causal_conv1d": (*HALF, torch.float32)},
}
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run on the CPU
MAX_HEAD_DIM = 256


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve these inputs."""


def choose(op: str, backend: str, *tensors: Tensor) -> str:
    """Resolve `backend`: "auto" is triton for tensors on a GPU where its needs are met, else torch."""
    known = ("auto", *BACKENDS, *VENDORS.get(op, {}))
    if backend not in known:
        raise ValueError(f"{op}: unknown backend {backend!r}; expected one of {', '.join(known)}")
    if backend in ("torch", "reference"):
        return backend
    if backend in VENDORS.get(op, {}):
        refuse_unmet(op, backend, _vendor_needs(backend, VENDORS[op][backend], tensors))
        return backend
    needs = _triton_needs(tensors)
    if backend == "triton":
        refuse_unmet(op, backend, needs)
    return "triton" if backend == "triton" or (all(needs.values()) and all(x.is_cuda for x in tensors)) else "torch"


def refuse_unmet(op: str, backend: str, needs: dict[str, bool]) -> None:
    """Raise BackendError if the backend that was asked for cannot have all it needs."""
    unmet = [need for need, met in needs.items() if not met]
    if unmet:
        raise BackendError(f"{op}: backend={backend!r} needs {', '.join(unmet)}; use 'torch' or 'auto'")


def explain(op: str, *tensors: Tensor) -> str:
    """Say which backend "auto" would run for these tensors, and why the others would not."""
    chosen = choose(op, "auto", *tensors)
    unmet = [need for need, met in _triton_needs(tensors).items() if not met]
    if unmet:
        triton = "cannot run, it needs " + ", ".join(unmet)
    else:
        triton = "is chosen" if chosen == "triton" else "can run, but only in Triton's interpreter; name it to use it"
    torch_ = "is chosen" if chosen == "torch" else "can run, but Triton's kernels are made for this device"
    return (
        f"{op}: 'auto' runs {chosen!r}\n  triton     {triton}\n  torch      {torch_}\n"
        "  reference  can run, but it walks one token at a time: it defines what is right"
    )


def _triton_needs(tensors: tuple[Tensor, ...]) -> dict[str, bool]:
    return {
        "triton installed": HAS_TRITON,
        "CUDA tensors": INTERPRET or all(x.is_cuda for x in tensors),
        "float32 or narrower": all(x.dtype != torch.float64 for x in tensors),
        f"head dims of at most {MAX_HEAD_DIM}": all(x.shape[-1] <= MAX_HEAD_DIM for x in tensors if x.ndim == 4),
    }


def _vendor_needs(package: str, dtypes: tuple[torch.dtype, ...], tensors: tuple[Tensor, ...]) -> dict[str, bool]:
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    return {
        f"{package.replace('_', '-')} installed": importlib.util.find_spec(package) is not None,
        "CUDA tensors": all(x.is_cuda for x in tensors),
        names: all(x.dtype in dtypes for x in tensors),
    }
