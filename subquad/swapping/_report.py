"""What a swap kept, what is new, and what it does to the state."""

from typing import NamedTuple


class SwappedLayer(NamedTuple):
    """One layer of a swap."""

    name: str  # of the module
    mixer: str
    kept: tuple[str, ...]  # of the projections q, k, v and o
    lost: tuple[str, ...]  # what the softmax had and the mixer has not
    new_parameters: int
    bytes_before: int | None  # None: not known
    bytes_after: int


class SwapReport(NamedTuple):
    """What a swap did, layer by layer; as a string, a table.

    Bytes are those of the state that one sequence carries after `context` tokens.
    """

    layers: tuple[SwappedLayer, ...]
    context: int

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before or 0 for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def new_parameters(self) -> int:
        return sum(layer.new_parameters for layer in self.layers)

    def __str__(self) -> str:
        before, after = f"bytes at {self.context}", "after the swap"
        rows = [("layer", "mixer", "kept", "lost", "new parameters", before, after)]
        for layer in self.layers:
            counts = (layer.new_parameters, layer.bytes_before, layer.bytes_after)
            words = (layer.name, layer.mixer, " ".join(layer.kept) or "-", " ".join(layer.lost) or "-")
            rows.append((*words, *("-" if count is None else f"{count:,}" for count in counts)))
        totals = (self.new_parameters, self.bytes_before, self.bytes_after)
        rows.append(("all", "", "", "", *(f"{count:,}" for count in totals)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        left = 4  # columns of words
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i < left else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )
