"""What losses are made of: each function appends one operation, or a few that belong together."""

from tests.fuzz.drafts import Draft, Value, over

POINTWISE = """
F.gelu({x}) | F.silu({x}) | F.softplus({x}) | torch.tanh({x}) | F.elu({x}) | F.leaky_relu({x}, 0.1) | F.mish({x})
F.hardswish({x}) | torch.sin({x}) | {x} * torch.sigmoid({x}) | torch.atan({x}) | {x}.clamp(-1.5, 1.5)
torch.where({x} > 0, {x}, 0.1 * {x}.exp()) | torch.expm1(0.1 * {x}) | ({x}.abs() + 0.1).log()
({x}.square() + 0.01).sqrt() | torch.erf({x}) | {x} / (1 + {x}.abs()) | torch.logaddexp({x}, -{x}) | F.hardtanh({x})
F.logsigmoid({x}) | F.softshrink({x}) | F.tanhshrink({x}) | F.selu({x}) | F.celu({x}, 0.7) | F.relu6({x} + 1)
torch.lerp({x}, {x}.flip(-1), 0.3) | torch.hypot({x}, 1 + {x}.abs()) | torch.atan2({x}, 1.5 + {x}.cos())
{x}.double().sin().to({x}.dtype) | {x}.softmax(-1) * 3 | {x}.log_softmax(-1) | {x} - {x}.logsumexp(-1, keepdim=True)
{x} - {x}.amax(-1, keepdim=True) | F.normalize({x}, dim=-1) | {x}.roll(1, -1) * 0.9 | {x}.sort(-1).values
(1 + 0.1 * {x}).cumprod(-1) | {x}.cumsum(-1) * 0.3 | {x} / ({x}.std(-1, keepdim=True) + 0.5)
{x} - {x}.median(-1, keepdim=True).values | F.layer_norm({x}, ({x}.shape[-1],)) | F.rms_norm({x}, ({x}.shape[-1],))
{x}.pow(3) * 0.1 | {x}.sign() * ({x}.abs() + 0.01).sqrt() | {x}.masked_fill({x}.detach() < -1, 0.0)
F.pad({x}, (1, 1))[..., 1:-1] * 0.8 | torch.cat([{x}[..., 1:], {x}[..., :1].neg()], -1) | {x}.tril() + 0.5 * {x}
torch.stack([{x}, {x}.sin()]).mean(0) | {x}.unfold(-1, 2, 1).mean(-1).sum(-1, keepdim=True) + {x} | F.gelu({x}.mT).mT
torch.addcmul({x}, {x}.sin(), {x}.cos(), value=0.5) | {x}.clone().mul_(0.5).add_(1.0) | {x}.flip(0).detach() + {x}
torch.einsum("...i,...j->...ij", {x}, {x}.sin()).mean(-1) | torch.special.entr({x}.sigmoid())
torch.copysign({x}, {x}.sin())
{x}.repeat_interleave(2, -1)[..., ::2] * {x}.cos() | torch.maximum({x}, {x}.flip(-1)) | {x}.logcumsumexp(-1)
{x}.index_select(0, torch.arange({x}.shape[0]).flip(0)) + {x} | torch.trapezoid({x}, dim=-1).unsqueeze(-1) * 0.1 + {x}
{x} * {x}.detach().abs().amax().reciprocal() | {x}.view(-1).reshape({x}.shape).exp().log1p() | {x}.tanh().atanh() * 0.5
"""
TEXTS = [text.strip() for line in POINTWISE.strip().splitlines() for text in line.split(" | ")]


@over(2, 3, 4)
def pointwise(d: Draft, x: Value) -> Value:
    return d.let(d.rng.choice(TEXTS).format(x=x.name), x.dims)


@over(2, 3, 4)
def outside(d: Draft, x: Value) -> Value:
    tensor = d.constant(f"torch.linspace(-1, 1, {x.dims[-1] if isinstance(x.dims[-1], int) else 1})")
    number = d.constant(d.number(0.5, 1.5))
    return d.let(f"{x.name} * {number} + {tensor}.to({x.name}.dtype)", x.dims)


@over(2, 3, 4)
def dropout(d: Draft, x: Value) -> Value | None:
    if d.rng.random() < 0.7:  # a loss that draws is held at its first batch alone
        return None
    d.draws = True
    return d.let(f"F.dropout({x.name}, {d.number(0.1, 0.6)})", x.dims)


@over(2, 3, 4)
def in_place(d: Draft, x: Value) -> Value:
    y = d.let(f"{x.name} * 1.0", x.dims)
    some = ["{y}[..., 0] = {y}[..., -1] * 0.5", "{y}[0] += 1.0", "{y}.mul_(0.7).neg_()",
            "{y}[..., ::2] *= 0.5", "{y}.index_add_(0, torch.zeros(1, dtype=torch.int64), {y}[:1].detach() * 0.5)",
            "{y}.masked_fill_({y}.detach() > 1.5, 1.5)", "{y}[:, 0] = {y}[:, -1].clone().sin()"]  # fmt: skip
    d.lines.extend(text.format(y=y.name) for text in d.rng.sample(some, 2))
    return y


@over(2, 3)
def linear(d: Draft, x: Value) -> Value:
    out = d.rng.choice([1, 3, 4, 7, 8, 9, 16, 17])
    if d.in_module and d.rng.random() < 0.5:
        return d.let(f"{d.module(f'nn.Linear({x.last}, {out})')}({x.name})", (*x.dims[:-1], out))
    w, b = d.param(x.last, out), d.param(out)
    forms = [
        f"{x.name} @ {w} + {b}",
        f"F.linear({x.name}, {w}.T, {b})",
        f"torch.einsum('...i,io->...o', {x.name}, {w})",
    ]
    return d.let(d.rng.choice(forms), (*x.dims[:-1], out))


@over(2, 3)
def gated(d: Draft, x: Value) -> Value:
    w = d.param(x.last, 2 * x.last)
    return d.let(f"F.glu({x.name} @ {w}, -1) + {x.name}", x.dims)


@over(2, 3, 4)
def checkpointed(d: Draft, x: Value) -> Value:
    axis = 1 if len(x.dims) == 4 else -1
    scale = d.param(x.last)
    shape = f"{scale}.view(-1, 1, 1)" if axis == 1 else scale
    text = d.rng.choice(["v.tanh() * {s}", "F.gelu(v * {s}) + v", "(v * {s}).softmax(-1)", "(v + {s}).sin().cos()"])
    return d.let(f"checkpoint(lambda v: {text.format(s=shape)}, {x.name}, use_reentrant=False)", x.dims)


@over(2, 3)
def embedded(d: Draft, x: Value) -> Value:
    rows = d.rng.choice([3, 5, 11])
    i = d.input(x.dims[:-1], "Int", rows)
    w = d.param(rows, x.last)
    forms = [f"F.embedding({i}, {w})", f"{w}[{i}]", f"F.one_hot({i}, {rows}).to({w}.dtype) @ {w}",
             f"{w}.index_select(0, {i}.reshape(-1)).view({x.name}.shape)"]  # fmt: skip
    return d.let(f"{x.name} + {d.rng.choice(forms)}", x.dims)


@over(2)
def scattered(d: Draft, x: Value) -> Value:
    rows = d.rng.choice([2, 4, 5])
    i = d.input(x.dims[:1], "Int", rows)
    zero = f"torch.zeros({rows}, {x.last}, dtype={x.name}.dtype)"
    wide = f"{i}.unsqueeze(1).expand(-1, {x.last})"
    forms = [f"{zero}.index_add(0, {i}, {x.name})", f"{zero}.scatter_add(0, {wide}, {x.name})",
             f"{zero}.index_put(({i},), {x.name}, accumulate=True)",
             f"{zero}.scatter_reduce(0, {wide}, {x.name}, 'mean', include_self=True)",
             f"{zero}.scatter_reduce(0, {wide}, {x.name}, 'amax', include_self=True)"]  # fmt: skip
    return d.let(f"{x.name} + 0.3 * {d.rng.choice(forms)}[{i}]", x.dims)


@over(2)
def mixed_experts(d: Draft, x: Value) -> Value:
    gate, experts = d.param(x.last, 4), d.param(4, x.last, x.last)
    top = d.let(f"torch.topk(({x.name} @ {gate}).softmax(-1), 2)", ())
    return d.let(f"torch.einsum('nk,nkio,ni->no', {top.name}[0], {experts}[{top.name}[1]], {x.name})", x.dims)


@over(2)
def over_the_batch(d: Draft, x: Value) -> Value:
    forms = ["torch.cdist({x}, {x} + 1.0) @ {x} * 0.1", "({x} @ {x}.T).softmax(-1) @ {x}", "{x} - {x}.mean(0)",
             "F.batch_norm({x}, None, None, training=True)", "{x} / ({x}.norm(dim=0) + 1.0)",
             "{x} + {x}.cumsum(0) / {x}.shape[0]", "F.normalize({x}, dim=0)"]  # fmt: skip
    return d.let(d.rng.choice(forms).format(x=x.name), x.dims)


@over(2)
def as_sequence(d: Draft, x: Value) -> Value | None:
    parts = [p for p in (2, 3, 4) if x.last % p == 0 and x.last > p]
    if not parts:
        return None
    p = d.rng.choice(parts)
    return d.let(f"{x.name}.view({x.name}.shape[0], {p}, {x.last // p})", (x.dims[0], p, x.last // p))


@over(3)
def attention(d: Draft, x: Value) -> Value:
    heads = d.rng.choice([h for h in (1, 2, 3, 4) if x.last % h == 0])
    if d.in_module and d.rng.random() < 0.4:
        m = d.module(f"nn.MultiheadAttention({x.last}, {heads}, batch_first=True)")
        return d.let(f"{m}({x.name}, {x.name}, {x.name}, need_weights=False)[0]", x.dims)
    w = d.param(x.last, 3 * x.last)
    split = f"({x.name} @ {w}).unflatten(-1, (3, {heads}, {x.last // heads})).permute(2, 0, 3, 1, 4).unbind(0)"
    parts = d.let(split, ())
    causal = d.rng.choice(["True", "False"])
    forms = [f"F.scaled_dot_product_attention(*{parts.name}, is_causal={causal})",
             f"(({parts.name}[0] @ {parts.name}[1].mT * 0.5).softmax(-1) @ {parts.name}[2])"]  # fmt: skip
    return d.let(f"{d.rng.choice(forms)}.transpose(1, 2).flatten(2) + {x.name}", x.dims)


@over(3)
def along_time(d: Draft, x: Value) -> Value:
    table = d.param(12, x.last)
    forms = ["{x} + {table}[:{x}.shape[1]]", "{x}.cumsum(1) * 0.4 + {table}[0]",
             "F.pad({x}, (0, 0, 1, 0))[:, :-1] * {table}[1] + {x}", "{x}.flip(1) * {table}[2]",
             "{x}.masked_fill(torch.ones({x}.shape[1], {x}.shape[1]).tril().bool()[0, :, None], 0.5) * {table}[3]",
             "{x}.gather(1, {x}.detach().argsort(1)) * {table}[4]",
             "F.conv1d({x}.mT, {table}[:3].T.unsqueeze(1), padding=1, groups={c}).mT"]  # fmt: skip
    return d.let(d.rng.choice(forms).format(x=x.name, table=table, c=x.last), x.dims)


@over(3)
def pooled(d: Draft, x: Value) -> Value:
    forms = ["{x}.mean(1)", "{x}.amax(1)", "{x}[:, -1]", "{x}.logsumexp(1)", "({x} * {x}.softmax(1)).sum(1)"]
    return d.let(d.rng.choice(forms).format(x=x.name), (x.dims[0], x.last))


@over(4)
def convolved(d: Draft, x: Value) -> Value | None:
    (h, w), out = x.sides, d.rng.choice([2, 4, 6])
    k, stride, pad = d.rng.choice([1, 2, 3]), d.rng.choice([1, 1, 2]), d.rng.choice([0, 1])
    if d.rng.random() < 0.25:
        size = [(s - 1) * stride + k for s in (h, w)]
        text = f"F.conv_transpose2d({x.name}, {d.param(x.last, out, k, k)}, stride={stride})"
        return d.let(text, (x.dims[0], out, *size)) if max(size) < 12 else None
    size = [(s + 2 * pad - k) // stride + 1 for s in (h, w)]
    if min(size) < 2:
        return None
    if d.in_module and d.rng.random() < 0.5:
        text = f"{d.module(f'nn.Conv2d({x.last}, {out}, {k}, {stride}, {pad})')}({x.name})"
    else:
        weight, bias = d.param(out, x.last, k, k), d.param(out)
        text = f"F.conv2d({x.name}, {weight}, {bias}, stride={stride}, padding={pad})"
    return d.let(text, (x.dims[0], out, *size))


@over(4)
def pooled_image(d: Draft, x: Value) -> Value | None:
    (h, w), k, s = x.sides, d.rng.choice([2, 3]), d.rng.choice([1, 2])
    ceil, pad = d.rng.random() < 0.5, d.rng.choice([0, 1])

    def size(side: int) -> int:
        last = -(-(side + 2 * pad - k) // s) if ceil else (side + 2 * pad - k) // s
        return last + 1 - (last * s >= side + pad)  # the last window starts within

    sizes = (size(h), size(w))
    if min(sizes) < 2:
        return None
    counted = d.rng.choice([", count_include_pad=False", ""])
    forms = [f"F.avg_pool2d({x.name}, {k}, {s}, {pad}, ceil_mode={ceil}{counted})",
             f"F.max_pool2d({x.name}, {k}, {s}, {pad}, ceil_mode={ceil})"]  # fmt: skip
    return d.let(d.rng.choice(forms), (*x.dims[:2], *sizes))


@over(4)
def resized(d: Draft, x: Value) -> Value | None:
    h, w = x.sides
    if max(h, w) > 6:
        return d.let(f"F.adaptive_avg_pool2d({x.name}, (3, 4))", (*x.dims[:2], 3, 4))
    mode = d.rng.choice(["'nearest'", "'bilinear', align_corners=True", "'bilinear'", "'bicubic'", "'nearest-exact'"])
    to = d.rng.choice([(2 * h, 2 * w), (h + 1, w + 2), (7, 5)])
    return d.let(f"F.interpolate({x.name}, size={to}, mode={mode})", (*x.dims[:2], *to))


@over(4)
def joined(d: Draft, x: Value) -> Value:
    """A skip connection as in a U-Net: up again, and both side by side."""
    h, w = x.sides
    down = d.let(f"F.max_pool2d(F.silu({x.name}), 2, ceil_mode=True)", ())
    up = f"F.interpolate({down.name}, size=({h}, {w}), mode='nearest')"
    return d.let(f"torch.cat([{up}, {x.name}], 1)", (x.dims[0], 2 * x.last, h, w))


@over(4)
def normalised(d: Draft, x: Value) -> Value:
    groups = d.rng.choice([g for g in (1, 2, 3) if x.last % g == 0])
    if d.in_module and d.rng.random() < 0.6:
        made = [f"nn.BatchNorm2d({x.last})", f"nn.GroupNorm({groups}, {x.last})", f"nn.InstanceNorm2d({x.last})"]
        return d.let(f"{d.module(d.rng.choice(made))}({x.name})", x.dims)
    w, b = d.param(x.last), d.param(x.last)
    forms = [f"F.group_norm({x.name}, {groups}, {w} + 1, {b})", f"F.instance_norm({x.name}, weight={w} + 1, bias={b})",
             f"F.batch_norm({x.name}, None, None, {w} + 1, {b}, training=True)",
             f"F.layer_norm({x.name}.permute(0, 2, 3, 1), ({x.last},), {w} + 1, {b}).permute(0, 3, 1, 2)"]  # fmt: skip
    return d.let(d.rng.choice(forms), x.dims)


@over(4)
def moved(d: Draft, x: Value) -> Value:
    h, w = x.sides
    forms = ["F.pad({x}, (1, 1, 1, 1), mode='reflect')[:, :, 1:-1, :-2]", "{x}.roll((1, 1), (2, 3))",
             "F.pad({x}, (1, 0, 0, 1), 'replicate')[:, :, 1:, 1:]", "F.pad({x}, (1, 1, 0, 0), 'circular')[..., 2:]",
             "F.fold(F.unfold({x}, 2), ({h}, {w}), 2) * 0.3", "{x}.transpose(2, 3).contiguous().mT",
             "{x} * {x}.mean((2, 3), keepdim=True).sigmoid()"]  # fmt: skip
    return d.let(d.rng.choice(forms).format(x=x.name, h=h, w=w), x.dims)


@over(4)
def flattened(d: Draft, x: Value) -> Value | None:
    h, w = x.sides
    if x.last * h * w > 80 or d.rng.random() < 0.3:
        return d.let(f"{x.name}.mean((2, 3))", (x.dims[0], x.last))
    if d.rng.random() < 0.5:
        return d.let(f"{x.name}.flatten(2).mT", (x.dims[0], h * w, x.last))
    return d.let(f"{x.name}.flatten(1)", (x.dims[0], x.last * h * w))
