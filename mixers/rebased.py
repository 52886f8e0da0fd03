"""ReBased: Based with a learned square, whose weights can vanish."""

from torch import Tensor, nn

from .based import Based


class ReBased(Based):
    """Squared attention: weights s^2 with s = q . k / sqrt(feature_dim), q and k normalised (arXiv 2402.10644, eq. 5).

    x -> q, k (feature_dim per head), v -> short convolution -> gamma * norm + beta on q and k, across their heads
    -> polynomial_attention, normalised -> out.

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories.
        head_dim: channels of a value; d_model / num_heads if None.
        feature_dim: channels of a query and of a key; the memory has f (f + 1) / 2 rows.
        conv_width: taps of a short convolution on q, k and v; none by default.
        backend: passed to the ops.
    """

    coefficients = (0.0, 0.0, 1.0)

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        head_dim: int | None = None,
        feature_dim: int = 16,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        factory = dict(device=device, dtype=dtype)
        super().__init__(
            d_model, num_heads=num_heads, head_dim=head_dim, feature_dim=feature_dim, conv_width=conv_width,
            backend=backend, **factory,
        )  # fmt: skip
        self.q_norm = nn.LayerNorm(num_heads * feature_dim, **factory)
        self.k_norm = nn.LayerNorm(num_heads * feature_dim, **factory)

    def normalize_features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)
