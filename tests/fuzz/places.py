"""More of what losses are made of: writes at indices and masks, running values, windows and grids."""

from tests.fuzz.drafts import Draft, Value, forms, over

AT_INDICES = """
torch.zeros_like({x}).scatter_add(1, {i}[:, None], {x}[:, :1]) + {x} |
{x}.scatter(1, {i}[:, None], {x}[:, -1:].sin()) | {x}.scatter(1, {i}[:, None], 0.5) |
{x}.scatter_reduce(1, {i}[:, None], {x}[:, :1].cos() + 2, 'prod') | {x} - {x}.take_along_dim({i}[:, None], 1) |
{x}.index_add(1, {i}, {x}[:1].sum() * torch.ones({x}.shape[0], {x}.shape[0], dtype={x}.dtype)) * 0.2 |
torch.zeros_like({x}).index_put((torch.arange({x}.shape[0]), {i}), {x}[:, 0], accumulate=True) * 2 + {x} |
{x}.index_put((torch.arange({x}.shape[0]), {i}), {x}[:, 0].exp() * 0.1) |
{x}[:1].expand({x}.shape).index_put((torch.arange({x}.shape[0]), {i}), {x}[:, 0], accumulate=True) + {x} |
{x} * {x}[torch.arange({x}.shape[0]), {i}].unsqueeze(1)
"""
MASKED = """
torch.where({m}, {x}, {x}.detach().mean()) | {x}.masked_fill({m}, -0.5) | {x} * {m} |
{x} * ({x} * {m}).sum() / {m}.sum().clamp(min=1) | {x}.masked_scatter({m}, {x}.sin().flip(0)) |
{x}.masked_fill(~{m}, -torch.inf).logsumexp(-1, keepdim=True).nan_to_num(neginf=0.0) + {x} |
{x}.masked_fill({m}, -1e4).softmax(-1) * 2 + {x} | {x} + ({x} * {m}).sum(-1, keepdim=True) / ({m}.sum(-1, True) + 1)
"""
WRITTEN = """
{y}[{y}.detach() > 0.5] = 0.25 | {y}[{y}.detach() < -0.5] *= 0.5 | {y}[1:] += {y}[:-1].clone() * 0.1 |
{y}[..., -1:].add_({y}[..., :1] * 0.3) | {y}.clamp_(max=2.0) | {y}[...] = {y}.roll(1, 0) * 0.9 |
{y}.view(-1)[::3] = 0.1 | {y}.copy_({y}.flip(-1).sin())
"""
RUNNING = """
{x}.cummax({a}).values | {x}.cummin({a})[0] * 0.5 + {x} | {x}.cumsum({a}).cos() | {x}.sigmoid().cumprod({a}) |
{x}.logcumsumexp({a}) - 1 | {x}.flip({a}).cumsum({a}).flip({a}) * 0.3 | ({x} > 0).cumsum({a}) * {x} * 0.1 |
torch.cumulative_trapezoid(F.pad({x}, (1, 0)), dim=-1) | F.pad({x}.diff(dim=-1), (0, 1)) + {x} |
torch.renorm({x}, 2, 0, 1.5)
"""
POOLED = """
F.lp_pool2d({x}.abs() + 0.1, 2.0, 3, 2, ceil_mode=True) | F.adaptive_max_pool2d({x}, 3) |
F.avg_pool2d({x}, 3, 2, 1, ceil_mode=True, divisor_override=5) | F.max_pool2d({x}, 2, 1, dilation=2) |
F.adaptive_avg_pool2d({x}, (2, 3)) | F.avg_pool2d({x}, 2, 3, ceil_mode=True) |
F.max_pool2d({x}, 3, 3, 1, ceil_mode=True)
"""
SHUFFLED = """
F.pixel_shuffle(torch.cat([{x}, {x}.sin(), {x}.cos(), {x} * 2], 1), 2)[:, :, ::2, 1::2] |
F.max_unpool2d(*F.max_pool2d({x}, 2, return_indices=True), 2, output_size=({h}, {w})) + {x} |
F.unfold({x}, 3, padding=1).view({x}.shape[0], {c}, 9, {h}, {w}).amax(2) |
F.fold(F.unfold({x}, 3, padding=1, stride=2), ({h}, {w}), 3, padding=1, stride=2) + {x} |
F.local_response_norm({x}, 2) | F.channel_shuffle({x}, {c}) | {x}.flip(2).transpose(2, 3).mT + {x} |
{x} + {x}.flatten(2).cumsum(-1).view({x}.shape) * 0.1 | {x}.to(memory_format=torch.channels_last).sin() |
{x} - F.interpolate({x}.mean((2, 3), keepdim=True), size=({h}, {w}))
"""


@over(2)
def written_at_indices(d: Draft, x: Value) -> Value:
    return d.let(d.one_of(AT_INDICES, x, i=d.input((x.dims[0],), "Int", x.last)), x.dims)


@over(2, 3, 4)
def masked(d: Draft, x: Value) -> Value:
    return d.let(d.one_of(MASKED, x, m=f"({d.input(x.dims, 'Int', 3)} > 0)"), x.dims)


@over(2, 3, 4)
def written_where(d: Draft, x: Value) -> Value:
    """Assignments through a mask, and to slices that overlap what is read."""
    y = d.let(f"{x.name} * 1.0", x.dims)
    d.lines.extend(text.format(y=y.name) for text in d.rng.sample(forms(WRITTEN), 2))
    return y


@over(2, 3)
def running(d: Draft, x: Value) -> Value:
    return d.let(d.one_of(RUNNING, x, a=d.rng.choice([0, -1])), x.dims)


@over(2)
def in_windows(d: Draft, x: Value) -> Value | None:
    if x.last < 4:
        return None
    rest = f"{d.rng.choice([2, 3])}, {d.rng.choice([1, 2])}, ceil_mode={d.rng.random() < 0.5}"
    made = (
        "F.avg_pool1d({x}[:, None], {r}) | F.max_pool1d({x}[:, None], {r}) | F.lp_pool1d({x}[:, None].abs(), 2.0, {r})"
    )
    pooled = d.one_of(made, x, r=rest)
    return d.let(f"F.interpolate({pooled}, size={x.last}, mode='linear').squeeze(1) + {x.name}", x.dims)


@over(4)
def pooled_otherwise(d: Draft, x: Value) -> Value | None:
    h, w = x.sides
    if min(h, w) < 4:
        return None
    return d.let(f"F.interpolate({d.one_of(POOLED, x)}, size=({h}, {w}), mode='nearest') + {x.name}", x.dims)


@over(4)
def sampled_on_a_grid(d: Draft, x: Value) -> Value:
    mode = d.rng.choice(["'bilinear'", "'nearest'", "'bicubic'"])
    pad, aligned = d.rng.choice(["'zeros'", "'border'", "'reflection'"]), d.rng.random() < 0.5
    theta = f"{d.param(2, 3)}.expand({x.name}.shape[0], 2, 3) + torch.eye(2, 3, dtype={x.name}.dtype)"
    grid = f"F.affine_grid({theta}, {x.name}.shape, align_corners={aligned})"
    sampled = f"F.grid_sample({x.name}, {grid}, mode={mode}, padding_mode={pad}, align_corners={aligned})"
    return d.let(f"{sampled} + {x.name}", x.dims)


@over(4)
def shuffled(d: Draft, x: Value) -> Value:
    h, w = x.sides
    return d.let(d.one_of(SHUFFLED, x, h=h, w=w, c=x.last), x.dims)
