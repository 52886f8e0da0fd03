"""Packed sequences: several of different lengths laid end to end in one row, with their borders in `cu_seqlens`."""

from collections.abc import Callable, Iterator
from functools import wraps
from itertools import pairwise

import torch
from torch import Tensor

from ._dtypes import can_look


def count_sequences(where: str, cu_seqlens: Tensor | None, b: int, t: int) -> int:
    """Number of sequences (rows of a state): b without packing. Refuses borders that do not fit the row."""
    if cu_seqlens is None:
        return b
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{where}: cu_seqlens must be (n + 1,) of int32 or int64, n >= 1, "
            f"got shape {tuple(cu_seqlens.shape)} of {cu_seqlens.dtype}"
        )
    if b != 1:
        raise ValueError(f"{where}: cu_seqlens packs all sequences into one row, so b must be 1, got b={b}")
    if can_look(cu_seqlens):
        borders = cu_seqlens.tolist()
        if borders[0] != 0 or borders[-1] != t or any(end < start for start, end in pairwise(borders)):
            raise ValueError(f"{where}: cu_seqlens must rise from 0 to t={t}, got {borders}")
    return len(cu_seqlens) - 1


def each_sequence(cu_seqlens: Tensor) -> Iterator[tuple[int, slice]]:
    """(row, its span of time) for every sequence that has a token."""
    for row, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        if end > start:
            yield row, slice(start, end)


def one_sequence(x: Tensor | None, axes: str, row: int, span: slice) -> Tensor | None:
    """The part of an argument that belongs to one sequence, told from its shape string."""
    if x is None:
        return None
    letters = axes.split()
    if "t" in letters or "s" in letters:  # s is the time of keys; packed, they have the borders of their queries
        return x[:, span]
    return x[row : row + 1] if letters[0] == "n" else x


def reference_over_sequences(shapes: dict[str, str]) -> Callable:
    """Decorate a reference that knows no packing: with `cu_seqlens` it is called once for each sequence.

    The function takes (*tensors in the order of `shapes`, *options) and returns y or (y, state);
    the decorated one takes (*tensors, cu_seqlens, *options), and runs with autocast off.
    """

    def decorate(run: Callable) -> Callable:
        @wraps(run)
        def over_sequences(*arguments):
            tensors, cu_seqlens, options = _split(arguments, shapes)
            with torch.autocast(tensors[0].device.type, enabled=False):
                return each(tensors, cu_seqlens, options)

        def each(tensors, cu_seqlens, options):
            if cu_seqlens is None:
                return run(*tensors, *options)
            ys, states = [], {}
            for row, span in each_sequence(cu_seqlens):
                result = run(*_parts(tensors, shapes, row, span), *options)
                y, states[row] = result if isinstance(result, tuple) else (result, None)
                ys.append(y)
            y = torch.cat(ys, dim=1)
            if "state" not in shapes:
                return y
            before = dict(zip(shapes, tensors, strict=True))["state"]
            one = next(iter(states.values()))
            rows = range(len(cu_seqlens) - 1)
            empty = [torch.zeros_like(one) if before is None else before[row : row + 1].to(one.dtype) for row in rows]
            return y, torch.cat([states.get(row, empty[row]) for row in rows])

        return over_sequences

    return decorate


def over_sequences(
    shapes: dict[str, str], allocate: Callable, forward: Callable, backward: Callable
) -> tuple[Callable, Callable, Callable]:
    """Make a dense forward and backward that know no packing serve `cu_seqlens`, one sequence after the other.

    Dense functions take (*tensors, *options), see `differentiable`; `allocate` already takes
    (*tensors, cu_seqlens, *options). With packing nothing is kept: the backward pass runs each forward again.
    """
    num_outputs = 2 if "state" in shapes else 1

    @wraps(allocate)
    def packed_allocate(*arguments):
        cu_seqlens = arguments[len(shapes)]
        return allocate(*arguments) if cu_seqlens is None else allocate(*arguments)[:num_outputs]

    def packed_forward(*arguments):
        tensors, cu_seqlens, options = _split(arguments, shapes)
        if cu_seqlens is None:
            return forward(*tensors, *options)
        outputs = packed_allocate(*arguments)
        if num_outputs == 2:
            before = dict(zip(shapes, tensors, strict=True))["state"]
            outputs[1].zero_() if before is None else outputs[1].copy_(before)
        for row, span in each_sequence(cu_seqlens):
            result = forward(*_parts(tensors, shapes, row, span), *options)
            outputs[0][:, span] = result[0]
            if num_outputs == 2:
                outputs[1][row : row + 1] = result[1]
        return outputs

    def packed_backward(grads, kept, *arguments):
        tensors, cu_seqlens, options = _split(arguments, shapes)
        if cu_seqlens is None:
            return backward(grads, kept, *tensors, *options)
        found = [None if x is None else torch.zeros_like(x) for x in tensors]
        if num_outputs == 2 and grads[1] is not None:
            dstate = dict(zip(shapes, found, strict=True))["state"]
            if dstate is not None:
                dstate.copy_(grads[1])  # what an empty sequence hands on; the others are overwritten below
        for row, span in each_sequence(cu_seqlens):
            parts = _parts(tensors, shapes, row, span)
            outer = [None if grads[0] is None else grads[0][:, span]]
            if num_outputs == 2:
                outer.append(None if grads[1] is None else grads[1][row : row + 1])
            inner = backward(outer, forward(*parts, *options), *parts, *options)
            for total, dx, axes in zip(found, inner, shapes.values(), strict=True):
                if dx is None:
                    continue
                place = one_sequence(total, axes, row, span)
                place.copy_(dx) if place is not total else total.add_(dx)
        return found

    return packed_allocate, packed_forward, packed_backward


def _split(arguments: tuple, shapes: dict[str, str]) -> tuple[tuple, Tensor | None, tuple]:
    num_tensors = len(shapes)
    return arguments[:num_tensors], arguments[num_tensors], arguments[num_tensors + 1 :]


def _parts(tensors: tuple, shapes: dict[str, str], row: int, span: slice) -> list[Tensor | None]:
    return [one_sequence(x, axes, row, span) for x, axes in zip(tensors, shapes.values(), strict=True)]
