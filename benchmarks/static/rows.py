"""One compiled call: what its kernels need and move, and what of it is more than is allowed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from subquad.kernels._configs import Config

from ..profile.kernel_facts import Needs
from ..profile.targets import GPUS

TRAFFIC_TOLERANCE = 0.01  # share by which traffic may be above its budget: one that is rounded is not exceeded
BY_CHANNEL = "16 tokens, the fewest that a product takes, of so many channels that fade on their own fill the registers"
# Calls that may spill in a hot loop, and why; they are held to their budgets all the same.
MAY_SPILL = (
    ({"dtype": "float32"}, "tensor cores do not take it as it is: products are unrolled into registers"),
    ({"op": "linear_attention", "case": "decay a channel", "width": 128}, BY_CHANNEL),
    ({"op": "linear_attention", "case": "decay a channel", "width": 256}, BY_CHANNEL),
    ({"op": "delta_rule", "case": "decay a channel", "width": 256}, BY_CHANNEL),
    ({"op": "generalized_delta_rule", "width": 256}, BY_CHANNEL),
    (
        {"op": "long_conv", "target": "b200"},
        "tensor memory is too small for the products of eight warps, and sixteen have 128 registers a thread",
    ),
)
NEEDS = tuple(field.name for field in fields(Needs))
UNITS = {  # what may never be above its budget; registers may
    "hot_spill": "bytes spilled in one pass of the hot loop",
    "loop_spill": "bytes spilled in loops",
    "spill": "bytes spilled",
    "shared": "bytes of shared memory",
}


@dataclass(frozen=True)
class Row:
    """A call of an op, compiled for one target by one Triton: the worst of its kernels.

    source: fingerprint of what it was compiled from.
    configs: how its kernels were launched, by what they asked their tables.
    traffic: by pass: bytes that cross device memory, of kernels and of PyTorch's own operations, over the compulsory
        ones; None where they depend on values in memory.
    hot_spill, loop_spill, spill: bytes of a thread, see `KernelFacts`.
    shared: bytes of a block.
    registers: of a thread.
    worst: kernel with the largest value, by the name of a field.
    error: why it does not compile, None if it does.
    """

    op: str
    case: str
    width: int
    dtype: str
    target: str
    triton: str
    source: str
    configs: dict[str, Config] = field(default_factory=dict)
    traffic: dict[str, float | None] = field(default_factory=dict)
    hot_spill: int = 0
    loop_spill: int = 0
    spill: int = 0
    shared: int = 0
    registers: int = 0
    worst: dict[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def key(self) -> tuple:
        return self.op, self.case, self.width, self.dtype, self.target, self.triton

    @property
    def label(self) -> str:
        return f"{self.op}, {self.case}, width {self.width}, {self.dtype}, {self.target}, Triton {self.triton}"

    @property
    def limit(self) -> int:
        """Bytes of shared memory that a block may have."""
        return GPUS[self.target].block_shared_bytes


def row_of(unread: Row, kernels: Sequence[tuple[str, Needs]], traffic: Mapping[str, float | None]) -> Row:
    """What is kept of a call whose kernels, by name, need and move this."""
    worst = {name: max(kernels, key=lambda pair, name=name: getattr(pair[1], name)) for name in NEEDS}
    return replace(
        unread,
        traffic=dict(traffic),
        **{name: getattr(needs, name) for name, (_, needs) in worst.items()},
        worst={name: kernel for name, (kernel, needs) in worst.items() if getattr(needs, name)},
    )


def violations(row: Row, budget: Row | None) -> Iterator[str]:
    """What fails: an error, shared memory over the limit, a spill in a hot loop; and all that is above the budget.

    budget: the stored row of the same call, target and Triton; None if there is none.
    """
    if row.error is not None:
        yield f"{row.label}: {row.error}"
        return
    if row.shared > row.limit:
        yield _too_much(row, "shared", f"the limit of the target is {row.limit}")
    if row.hot_spill and excuse(row) is None:
        yield _too_much(row, "hot_spill", "a hot loop may not spill")
    if budget is None or budget.error is not None:
        yield f"{row.label}: has no stored budget; store it with --update and commit it"
        return
    for name in UNITS:
        if getattr(row, name) > getattr(budget, name):
            yield _too_much(row, name, f"the budget is {getattr(budget, name)}")
    for name, found in row.traffic.items():
        allowed = budget.traffic.get(name)
        if found is None and allowed is not None:
            yield f"{row.label}: traffic of the {name} pass depends on values in memory, the budget is {allowed}"
        elif found is not None and (allowed is None or found > allowed * (1 + TRAFFIC_TOLERANCE)):
            yield f"{row.label}: the {name} pass moves {found} times the compulsory bytes, the budget is {allowed}"


def excuse(row: Row) -> str | None:
    """Why a spill in a hot loop of this call is let pass, None if it is not."""
    found = (why for what, why in MAY_SPILL if all(getattr(row, name) == value for name, value in what.items()))
    return next(found, None)


def _too_much(row: Row, name: str, allowed: str) -> str:
    return f"{row.label}: {row.worst[name]}: {getattr(row, name)} {UNITS[name]}, {allowed}"
