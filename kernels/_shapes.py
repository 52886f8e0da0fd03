"""Shape strings that run: the letters a docstring shows are the ones the call checks."""

from torch import Tensor


def bind_shapes(
    where: str, tensors: dict[str, Tensor | None], shapes: dict[str, str], sizes: dict[str, int] | None = None
) -> dict[str, int]:
    """Match each tensor to its letters, e.g. ``shapes=dict(q="b t h k")``; return the size of every letter.

    `sizes` gives letters that are fixed before the first tensor is seen. Absent (None) tensors are passed over.
    """
    fixed = sizes or {}
    sizes = dict(fixed)
    owner = dict.fromkeys(fixed, "the call")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        axes = shapes[name].split()
        wanted = f"{name} must be ({', '.join(axes)}), got shape {tuple(tensor.shape)}"
        if tensor.ndim != len(axes):
            raise ValueError(f"{where}: {wanted}")
        for axis, size in zip(axes, tensor.shape, strict=True):
            if size == 0 and axis not in fixed:
                raise ValueError(f"{where}: {name} has {axis}=0, every axis needs at least one element; {wanted}")
            if sizes.setdefault(axis, size) != size:
                raise ValueError(
                    f"{where}: {name} has {axis}={size}, but {owner[axis]} has {axis}={sizes[axis]}; {wanted}"
                )
            owner.setdefault(axis, name)
    return sizes
