"""From three plain functions to an operator that PyTorch knows: autograd, fake tensors, torch.compile, autocast."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.library import custom_op, infer_schema
from torch.nn import Parameter


def differentiable(
    name: str, shapes: dict[str, str], allocate: Callable, forward: Callable, backward: Callable, *, num_outputs: int
) -> Callable[..., list[Tensor]]:
    """Register ``subquad::<name>`` with its gradient as two opaque operators; return a function that calls it.

    allocate(*tensors[, cu_seqlens], *options) -> [outputs..., saved...]: empty tensors of the right shapes. Its
        annotations give the operator's signature; it stands in for `forward` wherever only shapes are wanted.
    forward(same) -> the same list, filled. The first `num_outputs` are results (y, then the state), the rest is
        kept for the backward pass.
    backward(grads, kept, *same) -> one gradient, or None, for each name in `shapes`, in that order. `grads` holds
        None where nothing flows back; `kept` is the whole list that `forward` returned.

    Both run with autocast off, for what an op computes in is its own business, and on the device of its first tensor,
    for Triton launches on the current one. Where no gradient is due and nothing traces, `forward` is called directly:
    the operator costs 50 us, a decoding step of some ops takes 10.
    """
    schema = infer_schema(allocate, mutates_args=())
    arguments = schema[1 : schema.rindex(") ->")]
    num_tensors = len(shapes)

    @custom_op(f"subquad::{name}", mutates_args=(), schema=f"({arguments}) -> Tensor[]")
    def forward_op(*inputs):
        with _surroundings(inputs[0]):
            return list(forward(*inputs))

    @forward_op.register_fake
    def _(*inputs):
        return list(allocate(*inputs))

    @custom_op(
        f"subquad::{name}_backward",
        mutates_args=(),
        schema=f"(Tensor?[] grads, Tensor[] kept, {arguments}) -> Tensor[]",
    )
    def backward_op(grads, kept, *inputs):
        with _surroundings(inputs[0]):
            found = backward(grads, kept, *inputs)
        return [
            torch.zeros_like(x, memory_format=torch.contiguous_format) if dx is None else dx.to(x.dtype).contiguous()
            for x, dx in zip(inputs[:num_tensors], found, strict=True)
            if _is_differentiable(x)
        ]

    @backward_op.register_fake
    def _(grads, kept, *inputs):
        return [
            torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in inputs[:num_tensors]
            if _is_differentiable(x)
        ]

    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.tensors = [isinstance(x, Tensor) for x in inputs]
        ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)), *output)

    def backward_of(ctx, grads):
        saved = list(ctx.saved_tensors)
        places = zip(ctx.tensors, ctx.options, strict=True)
        inputs = [saved.pop(0) if is_tensor else option for is_tensor, option in places]
        found = iter(backward_op(list(grads[:num_outputs]), saved, *inputs))
        gradients = [next(found) if _is_differentiable(x) else None for x in inputs[:num_tensors]]
        return (*gradients, *[None] * (len(inputs) - num_tensors))

    forward_op.register_autograd(backward_of, setup_context=setup_context)

    def call(*inputs):
        if torch.compiler.is_compiling() or any(_needs_operator(x) for x in inputs):
            return forward_op(*inputs)
        with _surroundings(inputs[0]):
            return forward(*inputs)

    call.operator = forward_op  # what torch.library.opcheck examines
    return call


@contextmanager
def _surroundings(x: Tensor) -> Iterator[None]:
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        yield


def _needs_operator(x) -> bool:
    if not isinstance(x, Tensor):
        return False
    return (x.requires_grad and torch.is_grad_enabled()) or type(x) not in (Tensor, Parameter)


def _is_differentiable(x: Tensor | None) -> bool:
    return x is not None and x.is_floating_point()
