"""LinearAttention: attention whose softmax is replaced by a product of features, so that a sum holds the past."""

import torch
from torch import Tensor, nn

from subquad.kernels.linear_attention import linear_attention

from ._feature_maps import make_feature_map
from ._mixer import Mixer, head_size
from ._norms import HeadNorm
from ._rotary import check_rotary, rotary_angles, rotate
from ._short_conv import ShortConv

DECAYS = (None, "retention")
NORMALIZATIONS = (None, "sum", "head")
RETENTION_GAIN = 2**-2.5  # RetNet's code: smaller q, k, v keep the unnormalised sums small at the start


class LinearAttention(Mixer):
    """Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236) and its published variants.

    x -> q, k, v -> short convolution -> feature map -> rotary -> linear_attention -> norm -> out.

    The defaults are the original. Retention (Sun et al. 2023, arXiv 2307.08621, eq. 5-7) is feature_map="identity",
    decay="retention", normalize="head", rotary_base=10_000. (its output gate is not part of the mixing, and not
    here); Hedgehog (2402.04347) is feature_map="hedgehog".

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories; divides d_model.
        feature_map: "elu" (elu + 1), "relu2" (relu squared), "hedgehog" (learned, 2k features) or "identity".
        decay: None, or "retention": head i forgets by the fixed factor 1 - 2^(-5-i) per token.
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
        feature_map: str = "elu",
        decay: str | None = None,
        normalize: str | None = "sum",
        rotary_base: float | None = None,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        self.num_heads, self.head_dim = num_heads, head_size(self.name, d_model, num_heads)
        _check_one_of(self.name, "decay", decay, DECAYS)
        _check_one_of(self.name, "normalize", normalize, NORMALIZATIONS)
        if normalize == "sum" and (feature_map == "identity" or rotary_base is not None):
            raise ValueError(
                f"{self.name}: normalize='sum' divides by the summed weights, but feature_map='identity' and rotary "
                "positions make them negative; use normalize='head' or None"
            )
        check_rotary(self.name, rotary_base, self.head_dim)
        self.decay = decay
        self.normalize = normalize
        self.rotary_base = rotary_base
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False, **factory)
        self.conv = ShortConv(3 * d_model, conv_width, backend=backend, **factory)
        self.q_map = make_feature_map(self.name, feature_map, num_heads, self.head_dim, **factory)
        self.k_map = make_feature_map(self.name, feature_map, num_heads, self.head_dim, **factory)
        self.norm = HeadNorm(self.head_dim, **factory) if normalize == "head" else nn.Identity()
        self.out_proj = nn.Linear(d_model, d_model, bias=False, **factory)
        if decay == "retention":
            for weight in self.qkv_proj.weight.chunk(3):
                nn.init.xavier_uniform_(weight, gain=RETENTION_GAIN)
            nn.init.xavier_uniform_(self.out_proj.weight)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        qkv, conv = self.conv(self.qkv_proj(x), conv)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)  # each (b, t, h, k)
        q, k = self.q_map(q), self.k_map(k)  # (b, t, h, r)
        if self.rotary_base is not None:
            cos, sin = rotary_angles(position, x.shape[1], q.shape[-1], self.rotary_base, like=q)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        inputs = dict(q=q, k=k, v=v)
        if self.decay == "retention":
            inputs["log_decay"] = _retention_log_decay(v).expand(v.shape[:3])
        return inputs, conv

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return linear_attention(**inputs, normalize=self.normalize == "sum", state=memory, backend=self.backend)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y).flatten(-2))


def _retention_log_decay(v: Tensor) -> Tensor:
    """log(1 - 2^(-5-i)) of head i, (h,) in float32 or wider (Sun et al. 2023, eq. 8)."""
    compute = torch.promote_types(v.dtype, torch.float32)
    heads = torch.arange(v.shape[2], device=v.device, dtype=compute)
    return torch.log1p(-(2.0 ** (-5 - heads)))


def _check_one_of(where: str, option: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise ValueError(f"{where}: unknown {option} {value!r}; expected one of {', '.join(map(repr, known))}")
