"""Operations that compute: products, reductions, convolutions, norms, gathering; and what a program asks of sizes."""

from tests.generator.drafts import Draft, Value, bracketed, operation, replaced


@operation("matmul")
def times_a_matrix(d: Draft, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    out = d.rng.choice(d.names)
    right = d.rng.random() < 0.85
    w = d.input((x.dims[-1], out) if right else (out, x.dims[-1]))
    return d.let(f"{x.name} @ {w.name}", replaced(x.dims, -1, out))


@operation("matmul")
def times_another(d: Draft, x: Value) -> Value | None:
    others = [y for y in d.values if y.rank == x.rank >= 2 and y.dims[:-1] == x.dims[:-1]]
    y = d.rng.choice([x, *others]) if x.rank >= 2 else x
    if x.rank < 2:
        return None
    return d.let(f"{x.name} @ {y.name}.mT", replaced(x.dims, -1, y.dims[-2]))


@operation("einsum")
def summed_by_letters(d: Draft, x: Value) -> Value | None:
    if not 2 <= x.rank <= 3:
        return None
    letters, out = "ijk"[: x.rank], d.rng.choice(d.names)
    at = d.axis(x)
    w = d.input((x.dims[at], out))
    left = letters[:at] + letters[at + 1 :]
    return d.let(
        f'torch.einsum("{letters},{letters[at]}z->{left}z", {x.name}, {w.name})', (*x.dims[:at], *x.dims[at + 1 :], out)
    )


@operation("add")
def plus_a_vector(d: Draft, x: Value) -> Value | None:
    at = d.axis(x)
    b = d.input((x.dims[at] if d.rng.random() < 0.85 else d.rng.choice(d.names),))
    shape = "".join("[:, None]" if i == 0 else "" for i in range(min(x.rank - 1 - at, 1)))
    if x.rank - 1 - at > 1:
        return None
    return d.let(f"{x.name} + {b.name}{shape}", x.dims)


@operation("add")
def plus_another(d: Draft, x: Value) -> Value | None:
    others = [y for y in d.values if y.rank == x.rank and y.name != x.name]
    if not others:
        return None
    same = [y for y in others if y.dims == x.dims]
    y = d.rng.choice(same if same and d.rng.random() < 0.8 else others)
    return d.let(f"{x.name} * {y.name}", x.dims)


@operation("reduce")
def reduced(d: Draft, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    at = d.axis(x)
    name = d.rng.choice(["sum", "mean", "amax", "logsumexp", "prod", "var", "argmax", "norm", "max", "median"])
    text = f"{x.name}.{name}({'dim=' if name == 'norm' else ''}{at})"
    text += ".values" if name in ("max", "median") else ".float()" if name == "argmax" else ""
    return d.let(text, (*x.dims[:at], *x.dims[at + 1 :]))


@operation("reduce")
def along(d: Draft, x: Value) -> Value | None:
    at = d.axis(x)
    texts = [f"{x.name}.softmax({at})", f"{x.name}.cumsum({at})", f"{x.name}.sort({at}).values", f"F.relu({x.name})"]
    return d.let(d.rng.choice(texts), x.dims)


@operation("reduce")
def best(d: Draft, x: Value) -> Value | None:
    at, k = d.axis(x), d.rng.choice(["1", "2", "3", d.size(x, d.axis(x)) + "//2"])
    if not k.isdigit():
        n = d.size(x, at)
        return d.let(f"{x.name}.topk({n}//2, {at}).values", replaced(x.dims, at, f"{bracketed(x.dims[at])}//2"))
    return d.let(f"{x.name}.topk({k}, {at}).values", replaced(x.dims, at, k))


@operation("reduce")
def differences(d: Draft, x: Value) -> Value | None:
    at = d.axis(x)
    return d.let(f"{x.name}.diff(dim={at})", replaced(x.dims, at, f"{x.dims[at]}-1"))


def _convolved(n: str, k: int, stride: int, pad: int) -> str:
    base = bracketed(n) + (f"+{2 * pad - k}" if 2 * pad >= k else f"-{k - 2 * pad}")
    return f"({base})//{stride}+1"


@operation("conv")
def convolved(d: Draft, x: Value) -> Value | None:
    if x.rank not in (3, 4):
        return None
    k, stride, pad, out = (
        d.rng.choice([1, 2, 3]),
        d.rng.choice([1, 1, 2]),
        d.rng.choice([0, 0, 1]),
        d.rng.choice(d.names),
    )
    axes = x.rank - 2
    w = d.input((out, x.dims[1], *[str(k)] * axes))
    dims = (x.dims[0], out, *(_convolved(n, k, stride, pad) for n in x.dims[2:]))
    return d.let(f"F.conv{axes}d({x.name}, {w.name}, stride={stride}, padding={pad})", dims)


@operation("conv")
def pooled(d: Draft, x: Value) -> Value | None:
    if x.rank not in (3, 4):
        return None
    k = d.rng.choice([2, 3])
    stride, pad, axes = d.rng.choice([1, 2, k]), d.rng.choice([0, 0, 1]), x.rank - 2
    which = d.rng.choice(["max", "avg"])
    dims = (*x.dims[:2], *(_convolved(n, k, stride, pad) for n in x.dims[2:]))
    return d.let(f"F.{which}_pool{axes}d({x.name}, {k}, {stride}, {pad})", dims)


@operation("conv")
def pooled_to(d: Draft, x: Value) -> Value | None:
    if x.rank not in (3, 4):
        return None
    axes, k = x.rank - 2, d.rng.choice([1, 2, 3])
    which = d.rng.choice(["max", "avg"])
    return d.let(f"F.adaptive_{which}_pool{axes}d({x.name}, {k})", (*x.dims[:2], *[str(k)] * axes))


@operation("conv")
def enlarged(d: Draft, x: Value) -> Value | None:
    if x.rank not in (3, 4):
        return None
    mode = "linear" if x.rank == 3 else "bilinear"
    mode = d.rng.choice(["nearest", mode])
    return d.let(
        f'F.interpolate({x.name}, scale_factor=2, mode="{mode}")',
        (*x.dims[:2], *(f"2*{bracketed(n)}" for n in x.dims[2:])),
    )


@operation("gather")
def gathered(d: Draft, x: Value) -> Value | None:
    at = d.axis(x)
    cut = d.index(at, d.rng.choice([":1", ":2", f":{d.size(x, at)}//2"]))
    index = d.rng.choice([f"{x.name}.argsort({at})", f"{x.name}.argsort({at})[{cut}]"])
    n = x.dims[at]
    if index.endswith("]"):
        n = "1" if ":1]" in index else "2" if ":2]" in index else f"{bracketed(n)}//2"
    texts = [f"{x.name}.gather({at}, {index})", f"torch.take_along_dim({x.name}, {index}, {at})"]
    return d.let(d.rng.choice(texts), replaced(x.dims, at, n))


@operation("gather")
def selected(d: Draft, x: Value) -> Value | None:
    at, n = d.axis(x), d.rng.choice(d.names)
    if d.rng.random() < 0.5:
        i = d.input((n,), "Int")
        return d.let(f"{x.name}.index_select({at}, {i.name})", replaced(x.dims, at, n))
    return d.let(f"{x.name}.index_select({at}, torch.arange({n}) % {d.size(x, at)})", replaced(x.dims, at, n))


@operation("gather")
def scattered(d: Draft, x: Value) -> Value | None:
    if x.rank != 2:
        return None
    m, n, at = d.rng.choice([*d.names, *x.dims]), d.rng.choice([*d.names, *x.dims]), d.axis(x)
    how = d.rng.choice(["scatter_add", "scatter"])
    if d.rng.random() < 0.5:
        i = d.input(x.dims, "Int").name
    else:
        i = f"torch.zeros_like({x.name}).long()"
    return d.let(f"torch.zeros({m}, {n}).{how}({at}, {i}, {x.name})", (m, n))


@operation("gather")
def added_by_index(d: Draft, x: Value) -> Value | None:
    at, n = d.axis(x), d.rng.choice(d.names)
    i = d.input((x.dims[at] if d.rng.random() < 0.8 else n,), "Int")
    sizes = ", ".join(replaced(x.dims, at, n))
    return d.let(f"torch.zeros({sizes}).index_add({at}, {i.name}, {x.name})", replaced(x.dims, at, n))


@operation("gather")
def embedded(d: Draft, x: Value) -> Value | None:
    if x.rank != 2:
        return None
    n = d.rng.choice(d.names)
    i = d.input((n,), "Int")
    return d.let(f"F.embedding({i.name}, {x.name})", (n, x.dims[1]))


@operation("norm")
def normalised(d: Draft, x: Value) -> Value | None:
    texts = [f"F.layer_norm({x.name}, ({d.size(x, -1)},))", f"F.normalize({x.name}, dim={d.axis(x)})"]
    if x.rank >= 2:
        texts += [f"F.batch_norm({x.name}, None, None, training=True)"] * 2
        texts += [f"F.group_norm({x.name}, {k})" for k in (1, 2)]
    if x.rank >= 3:
        texts += [f"F.instance_norm({x.name})"]
    return d.let(d.rng.choice(texts), x.dims)


@operation("norm")
def standardised(d: Draft, x: Value) -> Value | None:
    at = d.axis(x)
    return d.let(f"({x.name} - {x.name}.mean({at}, keepdim=True)) / {x.name}.std({at}, keepdim=True)", x.dims)


@operation("branch")
def one_way_or_the_other(d: Draft, x: Value) -> Value | None:
    at, k = d.axis(x), d.rng.choice([2, 3, 4])
    n, size = bracketed(x.dims[at]), d.size(x, d.axis(x))
    part, dim = d.rng.choice([("1:", f"{n}-1"), (":2", "2"), (f":{n}//2", f"{n}//2")])
    test = d.rng.choice(
        [f"{size} > {k}", f"{size} % 2 == 0", f"{size} == {k}", f"{d.size(x, at)} >= {k}", f"{size} < {k}"]
    )
    if d.rng.random() < 0.5:  # both ways give one shape
        return d.let(f"2 * {x.name} if {test} else {x.name} + 1", x.dims)
    one = f"{x.name}[{d.index(at, part)}]"
    if d.rng.random() < 0.5:
        return d.let(f"{one} if {test} else {x.name}", d.rng.choice([replaced(x.dims, at, dim), x.dims]))
    return d.let(f"{x.name} if {test} else {one}", d.rng.choice([replaced(x.dims, at, dim), x.dims]))


@operation("assert")
def asserted(d: Draft, x: Value) -> Value | None:
    size, k = d.size(x, d.axis(x)), d.rng.choice([1, 2, 3, 4])
    a, b = d.rng.choice(d.names), d.rng.choice(d.names)
    test = d.rng.choice(
        [f"{size} >= {k}", f"{size} % 2 == 0", f"{a} <= {b}", f"{size} != {k}", f"{x.name}.numel() >= {k}",
         f"{size} % 2 == 1", f"{a} % {b} == 0", f"{x.name}.numel() <= {a}", f"{size} < {k} or {a} > {k}"]
    )  # fmt: skip
    d.lines.append(f"assert {test}")
    return d.let(f"{x.name} + 1", x.dims)
