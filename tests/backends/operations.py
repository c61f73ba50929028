"""Operations and the edge values that they are tried on: at least 165, each a function of one tensor."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

inf, nan = math.inf, math.nan
EDGE = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, -2.5, 1e-30, -1e30, 3e38, 1e-45, inf, -inf, nan, 1.5])
MIXED = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.25, -3.5, 2.5, 100.0, -100.0, 1e-20, 7.0, 1.0, 88.0, -88.0, 0.5, -0.5])
INPUTS: Mapping[str, Tensor] = {
    "edges": EDGE,
    "numbers": MIXED,
    "positive": MIXED.abs() + 0.125,
    "unit": torch.linspace(-1, 1, 16),
    "rows": torch.stack([EDGE, MIXED, EDGE.flip(0)]),
    "finite rows": torch.stack([MIXED, MIXED.flip(0) / 7, torch.linspace(-2, 2, 16)]),
    "no rows": torch.empty(0, 4),
    "ties": torch.tensor([[1.0, 3.0, 3.0, -2.0], [0.0, -0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]),
    "nan rows": torch.tensor([[1.0, nan, 3.0, -2.0], [inf, -inf, 0.0, 1.0], [2.0, inf, inf, 2.0]]),
    "image": torch.linspace(-3, 3, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6).sin(),
    "signal": torch.linspace(-3, 3, 2 * 3 * 8).reshape(2, 3, 8).cos(),
    "matrix": torch.linspace(-1, 1, 16).reshape(4, 4).sin() + 3 * torch.eye(4),
    "numbers of integers": torch.tensor([-7, -1, 0, 1, 2, 3, 5, 2**31, -(2**40)]),
    "bits": torch.tensor([True, False, True, True]),
}
Made = tuple[Callable[[Tensor], Tensor], tuple[str, ...]]


def _by_name(names: str, kinds: tuple[str, ...], owner: object = torch) -> dict[str, Made]:
    return {name: (getattr(owner, name), kinds) for name in names.split()}


_POINTWISE = _by_name(
    "abs neg sign sgn square ceil floor round trunc frac relu sigmoid tanh sin cos tan atan asinh sinh cosh exp "
    "exp2 expm1 erf erfc positive isnan isinf isfinite isposinf isneginf signbit logical_not nan_to_num deg2rad "
    "rad2deg sinc reciprocal",
    ("edges", "numbers"),
)
_HALF = _by_name("sqrt rsqrt log log2 log10 log1p lgamma digamma", ("edges", "positive"))
_UNIT = _by_name("asin acos atanh erfinv logit arccos arcsin", ("edges", "unit"))
_SPECIAL = _by_name("i0 i0e i1 i1e entr ndtr log_ndtr expit", ("numbers",), torch.special)
_ACTIVATIONS = _by_name(
    "elu selu celu gelu silu mish softplus hardtanh hardswish hardsigmoid hardshrink softshrink tanhshrink softsign "
    "logsigmoid leaky_relu relu6",
    ("edges", "numbers"),
    F,
)
_REDUCTIONS = _by_name(
    "sum mean prod amax amin var std all any nansum nanmean argmax argmin count_nonzero",
    ("rows", "ties", "finite rows"),
)
_SCANS: dict[str, Made] = {
    name: ((lambda f: lambda x: f(x, 1))(getattr(torch, name)), ("finite rows", "ties", "nan rows"))
    for name in (
        "cumsum",
        "cumprod",
        "logcumsumexp",
        "softmax",
        "log_softmax",
        "logsumexp",
        "argmax",
        "argmin",
        "amax",
        "amin",
        "sum",
        "mean",
        "prod",
        "var",
        "std",
        "nansum",
        "any",
        "all",
    )
}
_VALUES: dict[str, Made] = {
    f"{name} along an axis": (
        (lambda f: lambda x: f(x, 1)[0])(getattr(torch, name)),
        ("finite rows", "ties", "nan rows"),
    )
    for name in ("max", "min", "cummax", "cummin", "median")
}
_EMPTY: dict[str, Made] = {
    f"{name} of nothing": (function, ("no rows",))
    for name, function in {
        "sum": lambda x: x.sum(0),
        "mean": lambda x: x.mean(0),
        "prod": lambda x: x.prod(0),
        "softmax": lambda x: x.softmax(0),
        "logsumexp": lambda x: x.logsumexp(0),
        "cat": lambda x: torch.cat([x, x]),
        "norm": lambda x: x.norm(),
        "var": lambda x: x.var(1),
        "cumsum": lambda x: x.cumsum(0),
        "mse_loss": lambda x: F.mse_loss(x, x),
        "matmul": lambda x: x.T @ x,
        "pad": lambda x: F.pad(x, (1, 1)),
    }.items()
}
_PAIRS: dict[str, Made] = {
    f"{name} with its reverse": ((lambda f: lambda x: f(x, x.flip(-1)))(getattr(torch, name)), ("edges", "numbers"))
    for name in (
        "add",
        "sub",
        "mul",
        "div",
        "maximum",
        "minimum",
        "fmax",
        "fmin",
        "atan2",
        "hypot",
        "fmod",
        "remainder",
        "copysign",
        "nextafter",
        "logaddexp",
        "logaddexp2",
        "xlogy",
        "eq",
        "lt",
        "ge",
        "dist",
    )
}
_BY_NUMBER: dict[str, Made] = {
    name: (function, ("edges", "numbers"))
    for name, function in {
        "x ** 0": lambda x: x**0,
        "x ** 2": lambda x: x**2,
        "x ** 3": lambda x: x**3,
        "x ** -1": lambda x: x**-1,
        "x ** 0.5": lambda x: x**0.5,
        "2 ** x": lambda x: 2.0**x,
        "0 ** x": lambda x: 0.0**x,
        "x / 0": lambda x: x / 0.0,
        "x % 3": lambda x: x % 3.0,
        "x // -2": lambda x: x.detach() // -2.0,
        "fmod 2.5": lambda x: torch.fmod(x, 2.5),
        "clamp": lambda x: x.clamp(-1, 1),
        "clamp_min": lambda x: x.clamp_min(0),
        "clamp_max": lambda x: x.clamp_max(0),
        "copysign -0": lambda x: torch.copysign(x, torch.tensor(-0.0)),
        "ldexp": lambda x: torch.ldexp(x, torch.tensor(3)),
        "threshold": lambda x: F.threshold(x, 0.5, -7.0),
        "lerp": lambda x: torch.lerp(x, x.flip(0), 0.25),
        "where": lambda x: torch.where(x > 0, x, -x),
        "masked_fill": lambda x: x.masked_fill(x.isnan(), 3.0),
        "addcmul": lambda x: torch.addcmul(x, x, x.flip(0), value=2.0),
        "round to 2": lambda x: x.round(decimals=2),
        "addcdiv": lambda x: torch.addcdiv(x, x, x.flip(0), value=0.5),
        "glu": lambda x: F.glu(x, 0),
        "prelu": lambda x: F.prelu(x, torch.tensor([0.25])),
        "frexp": lambda x: torch.frexp(x)[0],
        "normalize": lambda x: F.normalize(x, dim=0),
        "norm inf": lambda x: x.norm(inf),
        "norm 0": lambda x: x.detach().norm(0),
        "norm 1": lambda x: x.norm(1),
        "norm": lambda x: x.norm(),
    }.items()
}
_SHAPES: dict[str, Made] = {
    name: (function, ("finite rows", "nan rows"))
    for name, function in {
        "roll": lambda x: x.roll(1, 1),
        "flip": lambda x: x.flip(0, 1),
        "tril": lambda x: x.tril(),
        "diff": lambda x: x.diff(),
        "triu": lambda x: x.triu(1),
        "sort": lambda x: x.sort(dim=1, stable=True)[0],
        "topk": lambda x: x.topk(2, 1)[0],
        "cdist": lambda x: torch.cdist(x, x.flip(0)),
        "outer": lambda x: torch.outer(x[0], x[1]),
        "trace": lambda x: x.trace(),
        "gather": lambda x: x.gather(1, torch.tensor([[0, 1], [2, 3], [3, 0]])),
        "take": lambda x: x.take(torch.tensor([0, -1])),
        "scatter_add": lambda x: torch.zeros(3, 4).scatter_add(1, torch.tensor([[0, 0], [1, 3], [2, 2]]), x[:, :2]),
        "scatter_reduce amax": lambda x: x.scatter_reduce(
            1, torch.tensor([[0, 0], [1, 3], [2, 2]]), x[:, :2] + 1, "amax"
        ),
        "index_add": lambda x: x.index_add(0, torch.tensor([0, 0, 2]), x),
        "index_copy": lambda x: x.index_copy(0, torch.tensor([1]), x[:1]),
        "index_put": lambda x: x.index_put((torch.tensor([0, 0]), torch.tensor([1, 1])), x[0, :2], accumulate=True),
        "unfold": lambda x: x.unfold(1, 2, 2),
        "pad reflect": lambda x: F.pad(x[None], (1, 1), "reflect"),
        "pad circular": lambda x: F.pad(x[None], (2, 1), "circular"),
        "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
        "renorm": lambda x: torch.renorm(x, 2, 0, 1.0),
        "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
        "softmin": lambda x: F.softmin(x, 1),
        "kl_div": lambda x: F.kl_div(x, x.softmax(1), reduction="sum"),
        "mse": lambda x: F.mse_loss(x, x.flip(0)),
        "l1": lambda x: F.l1_loss(x, x.flip(0)),
        "huber": lambda x: F.huber_loss(x, x.flip(0)),
        "smooth_l1": lambda x: F.smooth_l1_loss(x, x.flip(0)),
        "soft_margin": lambda x: F.soft_margin_loss(x, torch.sign(x.detach().flip(0))),
        "bce with logits": lambda x: F.binary_cross_entropy_with_logits(x, torch.ones_like(x) / 4),
        "cross_entropy": lambda x: F.cross_entropy(x, torch.tensor([0, -100, 2])),
        "nll": lambda x: F.nll_loss(x, torch.tensor([0, 3, 2])),
        "cross_entropy smoothed": lambda x: F.cross_entropy(x, torch.tensor([0, 1, 2]), label_smoothing=0.1),
        "multi_margin": lambda x: F.multi_margin_loss(x, torch.tensor([0, 1, 2])),
        "cosine": lambda x: F.cosine_similarity(x, x.flip(0)),
        "multi_margin squared": lambda x: F.multi_margin_loss(x, torch.tensor([0, 1, 2]), p=2),
        "multilabel_soft_margin": lambda x: F.multilabel_soft_margin_loss(x, torch.ones_like(x)),
        "hinge_embedding": lambda x: F.hinge_embedding_loss(
            x, torch.tensor([[1.0], [-1.0], [1.0]]).expand(3, x.shape[1])
        ),
        "poisson_nll": lambda x: F.poisson_nll_loss(x, torch.ones_like(x)),
        "triplet": lambda x: F.triplet_margin_loss(x, x.flip(0), x.roll(1, 0)),
        "margin_ranking": lambda x: F.margin_ranking_loss(x[0], x[1], torch.ones(x.shape[1])),
        "pdist": lambda x: F.pdist(x),
        "bincount": lambda x: (x > 0).sum(0),
        "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
        "kron": lambda x: torch.kron(x[:2, :2], x[:2, :2]),
        "std_mean": lambda x: torch.std_mean(x, 1)[0],
        "quantile": lambda x: x.quantile(0.3, 1),
        "searchsorted": lambda x: torch.searchsorted(torch.tensor([0.0, 1.0, 2.0]), x),
        "bucketize": lambda x: torch.bucketize(x, torch.tensor([0.0, 1.0, 2.0]), right=True),
        "nanquantile": lambda x: x.nanquantile(0.5, 1),
    }.items()
}
_IMAGES: dict[str, Made] = {
    name: (function, ("image",))
    for name, function in {
        "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1),
        "avg_pool2d ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        "lp_pool2d": lambda x: F.lp_pool2d(x + 2, 2.0, 3, 2, ceil_mode=True),
        "avg_pool2d without pads": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        "avg_pool2d by 7": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=7),
        "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (4, 5)),
        "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 4),
        "max_pool2d dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
        "interpolate nearest": lambda x: F.interpolate(x, scale_factor=1.5),
        "interpolate nearest-exact": lambda x: F.interpolate(x, size=(4, 9), mode="nearest-exact"),
        "interpolate bilinear": lambda x: F.interpolate(x, size=(4, 9), mode="bilinear"),
        "interpolate bilinear aligned": lambda x: F.interpolate(x, size=(4, 9), mode="bilinear", align_corners=True),
        "interpolate bicubic": lambda x: F.interpolate(x, size=(4, 9), mode="bicubic"),
        "interpolate antialias": lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True),
        "interpolate area": lambda x: F.interpolate(x, size=(3, 4), mode="area"),
        "pixel_shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
        "unfold 2d": lambda x: F.unfold(x, 3, padding=1, stride=2),
        "fold": lambda x: F.fold(F.unfold(x, 2), (6, 6), 2),
        "grid_sample": lambda x: F.grid_sample(x, x[:, :2].movedim(1, -1), align_corners=False),
        "grid_sample nearest": lambda x: F.grid_sample(
            x, x[:, :2].movedim(1, -1) * 1.3, mode="nearest", padding_mode="border", align_corners=True
        ),
        "grid_sample reflected": lambda x: F.grid_sample(
            x, x[:, :2].movedim(1, -1) * 3, padding_mode="reflection", align_corners=False
        ),
        "group_norm": lambda x: F.group_norm(x, 3),
        "instance_norm": lambda x: F.instance_norm(x),
        "local_response_norm": lambda x: F.local_response_norm(x, 2),
        "conv2d": lambda x: F.conv2d(x, x[:, :, :3, :3], padding=1, stride=2),
        "conv_transpose2d": lambda x: F.conv_transpose2d(x, x.movedim(0, 1)[:, :, :3, :3], stride=2, output_padding=1),
        "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
        "channel_shuffle": lambda x: F.channel_shuffle(x.repeat(1, 2, 1, 1), 2),
        "max_unpool2d": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), [2, 2]),
        "replication_pad": lambda x: F.pad(x, (1, 2, 1, 0), "replicate"),
    }.items()
}
_SIGNALS: dict[str, Made] = {
    name: (function, ("signal",))
    for name, function in {
        "avg_pool1d ceil": lambda x: F.avg_pool1d(x, 3, 2, 1, ceil_mode=True),
        "lp_pool1d ceil": lambda x: F.lp_pool1d(x + 2, 3.0, 3, 2, ceil_mode=True),
        "max_pool1d": lambda x: F.max_pool1d(x, 3, 2),
        "conv1d": lambda x: F.conv1d(x, x[:, :, :3], padding="same"),
        "rfft": lambda x: torch.view_as_real(torch.fft.rfft(x)),
        "interpolate linear": lambda x: F.interpolate(x, size=5, mode="linear"),
        "attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x, 3),
        "bmm": lambda x: x.bmm(x.mT),
    }.items()
}
_MATRICES: dict[str, Made] = {
    name: (function, ("matrix",))
    for name, function in {
        "inv": torch.linalg.inv,
        "det": torch.linalg.det,
        "logdet": lambda x: (x @ x.T).logdet(),
        "matrix_exp": torch.matrix_exp,
        "cholesky": lambda x: torch.linalg.cholesky(x @ x.T),
        "solve": lambda x: torch.linalg.solve(x, x[0]),
        "slogdet": lambda x: torch.linalg.slogdet(x)[1],
        "pinv": torch.linalg.pinv,
        "qr": lambda x: torch.linalg.qr(x)[1].abs(),
        "svdvals": torch.linalg.svdvals,
        "eigvalsh": torch.linalg.eigvalsh,
        "matrix_power": lambda x: torch.linalg.matrix_power(x, 3),
        "vander": lambda x: torch.vander(x.detach()[0]),
        "norm nuc": lambda x: torch.linalg.matrix_norm(x, "nuc"),
        "triangular": lambda x: torch.linalg.solve_triangular(x.tril(), x, upper=False),
        "addmm": lambda x: torch.addmm(x, x, x, beta=0.5, alpha=2.0),
    }.items()
}
_INTEGERS: dict[str, Made] = {
    f"{name} of integers": (function, ("numbers of integers",))
    for name, function in {
        "floor_divide": lambda x: x // 3,
        "floor_divide by -2": lambda x: x // -2,
        "remainder": lambda x: x % -3,
        "fmod": lambda x: torch.fmod(x, 3),
        "shift": lambda x: x >> 1,
        "and": lambda x: x & 5,
        "xor": lambda x: x ^ 3,
        "abs": torch.abs,
        "square": torch.square,
        "true division": lambda x: x / 3,
        "cumsum": lambda x: x.cumsum(0),
        "to float": lambda x: x.float(),
        "to int32": lambda x: x.to(torch.int32),
        "pow": lambda x: x**3,
        "sign": torch.sign,
        "not": torch.bitwise_not,
        "mean of floats": lambda x: x.double().mean(),
        "one_hot": lambda x: x.gather(0, x.abs() % 4),
        "prod": lambda x: x[3:6].prod(),
    }.items()
}
OPERATIONS: Mapping[str, Made] = {
    **{f"{n} along an axis": made for n, made in _SCANS.items()},
    **_POINTWISE,
    **_HALF,
    **_UNIT,
    **_SPECIAL,
    **_ACTIVATIONS,
    **_REDUCTIONS,
    **_VALUES,
    **_EMPTY,
    **_PAIRS,
    **_BY_NUMBER,
    **_SHAPES,
    **_IMAGES,
    **_SIGNALS,
    **_MATRICES,
    **_INTEGERS,
}
