"""Arithmetic on whole numbers, one for each program; what is not known is None."""

import re
from collections.abc import Callable

import numpy as np

from .ttir import Operation


def is_known(value) -> bool:
    return isinstance(value, np.ndarray | np.generic)


def evaluate(operation: Operation, operands: list) -> np.ndarray | None:
    """The result of an arith operation on scalars, None if it cannot be known."""
    name = operation.name.removeprefix("arith.")
    if name == "constant":
        return _constant(operation.text)
    if not all(is_known(operand) for operand in operands):
        return None
    if name == "cmpi":
        return _COMPARISONS[re.search(r"cmpi (\w+)", operation.text)[1]](*operands)
    return _OPERATIONS[name](*operands) if name in _OPERATIONS else None


def _constant(text: str) -> np.generic | None:
    value = re.match(r"arith\.constant (true|false|-?\d+)(?: : \w+)?$", text)
    if value is None:
        return None
    return np.bool_(value[1] == "true") if value[1] in ("true", "false") else np.int64(value[1])


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rounded towards zero. Programs that never come here may have b = 0."""
    b = np.where(b == 0, 1, b)
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a - b * _divide(a, b)


def _to_integer(a: np.ndarray) -> np.ndarray:
    return np.asarray(a, dtype=np.int64)


def _same(a: np.ndarray) -> np.ndarray:
    return a


_COMPARISONS: dict[str, Callable] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "slt": np.less,
    "sle": np.less_equal,
    "sgt": np.greater,
    "sge": np.greater_equal,
    "ult": np.less,
    "ule": np.less_equal,
    "ugt": np.greater,
    "uge": np.greater_equal,
}
_OPERATIONS: dict[str, Callable] = {
    "addi": np.add,
    "subi": np.subtract,
    "muli": np.multiply,
    "divsi": _divide,
    "divui": _divide,
    "remsi": _remainder,
    "remui": _remainder,
    "minsi": np.minimum,
    "minui": np.minimum,
    "maxsi": np.maximum,
    "maxui": np.maximum,
    "andi": np.bitwise_and,
    "ori": np.bitwise_or,
    "xori": np.bitwise_xor,
    "shli": np.left_shift,
    "shrsi": np.right_shift,
    "shrui": np.right_shift,
    "extsi": _to_integer,
    "extui": _to_integer,
    "trunci": _same,
    "index_cast": _same,
    "select": np.where,
}
