"""LinearAttention: attention whose softmax is replaced by a product of features, so that a sum holds the past."""

from torch import Tensor, nn

from subquad.kernels.linear_attention import linear_attention

from ._feature_maps import make_feature_map
from ._mixer import Mixer, head_size
from ._norms import HeadNorm
from ._rotary import check_rotary, rotary_angles, rotate
from ._short_conv import ShortConv

NORMALIZATIONS = (None, "sum", "head")


class LinearAttention(Mixer):
    """Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236) and its published variants.

    x -> q, k, v -> short convolution -> feature map -> rotary -> linear_attention -> norm -> out.

    The defaults are the original; Hedgehog (2402.04347) is feature_map="hedgehog".

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories.
        head_dim: channels of a head; d_model / num_heads if None.
        feature_map: "elu" (elu + 1), "relu2" (relu squared), "hedgehog" (learned, 2k features) or "identity".
        normalize: "sum" divides by the summed weights, which must not be negative; "head" takes the RMS norm of each
            head, before which a division would cancel; None does neither.
        rotary_base: longest wavelength of rotary positions on the features, over 2 pi; none by default.
        conv_width: taps of a short convolution on q, k and v; none by default.
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        head_dim: int | None = None,
        feature_map: str = "elu",
        normalize: str | None = "sum",
        rotary_base: float | None = None,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        self.num_heads, self.head_dim = num_heads, head_size(self.name, d_model, num_heads, head_dim)
        width = num_heads * self.head_dim
        if normalize not in NORMALIZATIONS:
            known = ", ".join(map(repr, NORMALIZATIONS))
            raise ValueError(f"{self.name}: unknown normalize {normalize!r}; expected one of {known}")
        if normalize == "sum" and (feature_map == "identity" or rotary_base is not None):
            raise ValueError(
                f"{self.name}: normalize='sum' divides by the summed weights, but feature_map='identity' and rotary "
                "positions make them negative; use normalize='head' or None"
            )
        check_rotary(self.name, rotary_base, self.head_dim)
        self.normalize = normalize
        self.rotary_base = rotary_base
        self.qkv_proj = nn.Linear(d_model, 3 * width, bias=False, **factory)
        self.conv = ShortConv(3 * width, conv_width, backend=backend, **factory)
        self.q_map = make_feature_map(self.name, feature_map, num_heads, self.head_dim, **factory)
        self.k_map = make_feature_map(self.name, feature_map, num_heads, self.head_dim, **factory)
        self.norm = HeadNorm(self.head_dim, **factory) if normalize == "head" else nn.Identity()
        self.out_proj = nn.Linear(width, d_model, bias=False, **factory)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        qkv, conv = self.conv(self.qkv_proj(x), conv)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)  # each (b, t, h, k)
        q, k = self.q_map(q), self.k_map(k)  # (b, t, h, r)
        if self.rotary_base is not None:
            cos, sin = rotary_angles(position, x.shape[1], q.shape[-1], self.rotary_base, like=q)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return dict(q=q, k=k, v=v), conv

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return linear_attention(**inputs, normalize=self.normalize == "sum", state=memory, backend=self.backend)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y).flatten(-2))
