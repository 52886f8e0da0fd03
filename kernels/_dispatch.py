"""Which implementation of an op runs. A backend asked for by name runs or raises: it never falls back."""

import importlib.util
import os

import torch
from torch import Tensor

BACKENDS = ("triton", "torch", "reference")
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run on the CPU
MAX_HEAD_DIM = 256


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve these inputs."""


def choose(op: str, backend: str, *tensors: Tensor) -> str:
    """Resolve `backend`: "auto" is triton for tensors on a GPU where its needs are met, else torch."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"{op}: unknown backend {backend!r}; expected one of auto, {', '.join(BACKENDS)}")
    if backend in ("torch", "reference"):
        return backend
    unmet = _unmet_triton_needs(tensors)
    if backend == "triton" and unmet:
        raise BackendError(f"{op}: backend='triton' needs {', '.join(unmet)}; use 'torch' or 'auto'")
    return "triton" if backend == "triton" or (not unmet and all(x.is_cuda for x in tensors)) else "torch"


def explain(op: str, *tensors: Tensor) -> str:
    """Say which backend "auto" would run for these tensors, and why the others would not."""
    chosen = choose(op, "auto", *tensors)
    unmet = _unmet_triton_needs(tensors)
    if unmet:
        triton = "cannot run, it needs " + ", ".join(unmet)
    else:
        triton = "is chosen" if chosen == "triton" else "can run, but only in Triton's interpreter; name it to use it"
    torch_ = "is chosen" if chosen == "torch" else "can run, but Triton's kernels are made for this device"
    return (
        f"{op}: 'auto' runs {chosen!r}\n  triton     {triton}\n  torch      {torch_}\n"
        "  reference  can run, but it walks one token at a time: it defines what is right"
    )


def _unmet_triton_needs(tensors: tuple[Tensor, ...]) -> list[str]:
    needs = {
        "triton installed": HAS_TRITON,
        "CUDA tensors": INTERPRET or all(x.is_cuda for x in tensors),
        "float32 or narrower": all(x.dtype != torch.float64 for x in tensors),
        f"head dims of at most {MAX_HEAD_DIM}": all(x.shape[-1] <= MAX_HEAD_DIM for x in tensors if x.ndim == 4),
    }
    return [need for need, met in needs.items() if not met]
