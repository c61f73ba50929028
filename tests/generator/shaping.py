"""Operations that move, cut and join axes."""

from tests.generator.drafts import Draft, Value, bracketed, operation, replaced


@operation("view")
def merge(d: Draft, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    at = d.rng.randrange(x.rank - 1)
    dims = (*x.dims[:at], f"{bracketed(x.dims[at])}*{bracketed(x.dims[at + 1])}", *x.dims[at + 2 :])
    a, b = d.size(x, at), d.size(x, at + 1)
    sizes = [d.size(x, i) for i in range(x.rank)]
    sizes[at : at + 2] = [d.rng.choice([f"{a}*{b}", "-1"])]
    how = d.rng.choice(["view", "reshape"])
    return d.let(d.rng.choice([f"{x.name}.flatten({at}, {at + 1})", f"{x.name}.{how}({', '.join(sizes)})"]), dims)


@operation("view")
def split_axis(d: Draft, x: Value) -> Value | None:
    at, k = d.axis(x), d.rng.choice([2, 2, 3, 4])
    n = x.dims[at]
    part, other = f"{bracketed(n)}//{k}", str(k)
    parts = (part, other) if d.rng.random() < 0.5 else (other, part)
    sizes = [d.size(x, i) for i in range(x.rank)]
    written = list(parts)
    if d.rng.random() < 0.5:
        written[parts.index(part)] = "-1"
    if d.rng.random() < 0.2:
        return d.let(f"{x.name}.unflatten({at}, ({', '.join(written)}))", replaced(x.dims, at, *parts))
    sizes[at : at + 1] = written
    how = d.rng.choice(["view", "reshape"])
    return d.let(f"{x.name}.{how}({', '.join(sizes)})", replaced(x.dims, at, *parts))


@operation("view")
def swapped_view(d: Draft, x: Value) -> Value | None:
    """Through one axis, which says that the elements are meant to be read in another shape."""
    if x.rank < 2:
        return None
    a, b = d.rng.sample(range(x.rank), 2)
    order = list(range(x.rank))
    order[a], order[b] = order[b], order[a]
    how = d.rng.choice(["view", "reshape"])
    return d.let(f"{x.name}.{how}(-1).{how}({', '.join(d.size(x, i) for i in order)})", [x.dims[i] for i in order])


@operation("view")
def flat_rest(d: Draft, x: Value) -> Value | None:
    """All but one axis in one: `x.reshape(x.shape[0], -1)`."""
    if x.rank < 2:
        return None
    rest = "*".join(bracketed(n) for n in x.dims[1:])
    return d.let(f"{x.name}.{d.rng.choice(['view', 'reshape'])}({d.size(x, 0)}, -1)", (x.dims[0], rest))


@operation("view")
def transposed(d: Draft, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    a, b = d.rng.sample(range(x.rank), 2)
    dims = list(x.dims)
    dims[a], dims[b] = dims[b], dims[a]
    return d.let(f"{x.name}.transpose({a}, {b})", dims)


@operation("cat")
def joined(d: Draft, x: Value) -> Value | None:
    at = d.axis(x)
    others = [
        y for y in d.values if y.rank == x.rank and y.dims[:at] + y.dims[at + 1 :] == x.dims[:at] + x.dims[at + 1 :]
    ]
    y = d.rng.choice([x, *others])
    if d.rng.random() < 0.2:
        return d.let(f"torch.stack([{x.name}, {x.name}], {at})", (*x.dims[:at], "2", *x.dims[at:]))
    return d.let(f"torch.cat([{x.name}, {y.name}], {at})", replaced(x.dims, at, f"{x.dims[at]}+{y.dims[at]}"))


@operation("cat")
def cut_in_two(d: Draft, x: Value) -> Value | None:
    at, k = d.axis(x), d.rng.choice([1, 2, 3])
    n, size = bracketed(x.dims[at]), d.size(x, at)
    parts = d.rng.choice([(str(k), f"{n}-{k}"), (f"{n}-{k}", str(k)), (f"{n}//2", f"{n}-{n}//2")])
    written = [part.replace(n, size) for part in parts]
    which = d.rng.randrange(2)
    return d.let(f"{x.name}.split([{', '.join(written)}], {at})[{which}]", replaced(x.dims, at, parts[which]))


@operation("cat")
def part_of_equal_ones(d: Draft, x: Value) -> Value | None:
    at, k = d.axis(x), d.rng.choice([2, 2, 3])
    n = bracketed(x.dims[at])
    how = d.rng.choice(["chunk", "tensor_split", "split"])
    if how == "split":
        return d.let(f"{x.name}.split({k}, {at})[0]", replaced(x.dims, at, str(k)))
    which = d.rng.randrange(k) if d.rng.random() < 0.4 else 0
    sizes = [f"({n}+{k - 1})//{k}", f"{n}//{k}"]
    return d.let(f"{x.name}.{how}({k}, {at})[{which}]", replaced(x.dims, at, d.rng.choice(sizes)))


@operation("slice")
def sliced(d: Draft, x: Value) -> Value | None:
    at, k = d.axis(x), d.rng.choice([1, 1, 2, 3])
    n, size = bracketed(x.dims[at]), d.size(x, at)
    part, dim = d.rng.choice(
        [
            (f"{k}:", f"{n}-{k}"),
            (f":-{k}", f"{n}-{k}"),
            (f":{k}", str(k)),
            (f"-{k}:", str(k)),
            (f"{k}:-{k}", f"{n}-{2 * k}"),
            (f":{size}//2", f"{n}//2"),
            (f"{size}//2:", f"{n}-{n}//2"),
            (f"{size}//2:", f"({n}+1)//2"),
            ("::2", f"({n}+1)//2"),
            ("1::2", f"{n}//2"),
            (f"{k}:{size}-{k}", f"{n}-{2 * k}"),
            (f":{size}-{k}", f"{n}-{k}"),
            (f"{size}-{k}:", str(k)),
        ]
    )
    return d.let(f"{x.name}[{d.index(at, part)}]", replaced(x.dims, at, dim))


@operation("slice")
def narrowed(d: Draft, x: Value) -> Value | None:
    at, k = d.axis(x), d.rng.choice([1, 2, 3])
    n, size = bracketed(x.dims[at]), d.size(x, at)
    start, length, dim = d.rng.choice(
        [(str(k), f"{size}-{k}", f"{n}-{k}"), ("0", str(k), str(k)), (f"{size}//2", f"{size}//2", f"{n}//2")]
    )
    return d.let(f"{x.name}.narrow({at}, {start}, {length})", replaced(x.dims, at, dim))


@operation("slice")
def sliced_by_another(d: Draft, x: Value) -> Value | None:
    """`x[:, :y.shape[0]]`: as many as another axis has."""
    at, name = d.axis(x), d.rng.choice(d.names)
    return d.let(f"{x.name}[{d.index(at, f':{name}')}]", replaced(x.dims, at, name))


@operation("index")
def one_of(d: Draft, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    at, size = d.axis(x), ""
    size = d.size(x, at)
    position = d.rng.choice(["0", "1", "2", "-1", "-2", f"{size} - 1", f"{size}//2", f"-{size}", f"({size} - 1)//2"])
    texts = [f"{x.name}[{d.index(at, position)}]", f"{x.name}.select({at}, {position})"]
    return d.let(d.rng.choice(texts), (*x.dims[:at], *x.dims[at + 1 :]))


@operation("index")
def some_of(d: Draft, x: Value) -> Value | None:
    at, chosen = d.axis(x), d.rng.choice(["0, 1", "0, 2", "0, -1", "0"])
    count = str(chosen.count(",") + 1)
    texts = [f"[{chosen}]", f"torch.tensor([{chosen}])"]
    return d.let(f"{x.name}[{d.index(at, d.rng.choice(texts))}]", replaced(x.dims, at, count))


@operation("index")
def along_a_range(d: Draft, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    n = d.size(x, 0)
    other = d.rng.choice(
        [f"torch.arange({n}) % {d.size(x, 1)}", f"{d.size(x, 1)} - 1", "0", f"torch.zeros({n}).long()"]
    )
    return d.let(f"{x.name}[torch.arange({n}), {other}]", (x.dims[0], *x.dims[2:]))


@operation("unfold")
def windows(d: Draft, x: Value) -> Value | None:
    at, k, step = d.axis(x), d.rng.choice([1, 2, 3]), d.rng.choice([1, 2])
    n = bracketed(x.dims[at])
    count = f"{n}-{k - 1}" if step == 1 else f"({n}-{k})//{step}+1"
    return d.let(f"{x.name}.unfold({at}, {k}, {step})", (*replaced(x.dims, at, count), str(k)))


@operation("rearrange")
def rearranged(d: Draft, x: Value) -> Value | None:
    if x.rank not in (2, 3):
        return None
    letters = ["p", "q", "r"][: x.rank]
    at, k = d.axis(x), d.rng.choice([2, 3])
    if d.rng.random() < 0.5:
        order = d.rng.sample(range(x.rank), x.rank)
        left, right = " ".join(letters), " ".join(letters[i] for i in order[:-2])
        merged = f"({letters[order[-2]]} {letters[order[-1]]})"
        product = f"{bracketed(x.dims[order[-2]])}*{bracketed(x.dims[order[-1]])}"
        return d.let(f'rearrange({x.name}, "{left} -> {right} {merged}")', (*(x.dims[i] for i in order[:-2]), product))
    left = " ".join(f"(s {c})" if i == at else c for i, c in enumerate(letters))
    dims = replaced(x.dims, at, f"{bracketed(x.dims[at])}//{k}")
    right = " ".join(letters)
    return d.let(f'rearrange({x.name}, "{left} -> s {right}", s={k})', (str(k), *dims))


@operation("repeat")
def repeated(d: Draft, x: Value) -> Value | None:
    at, k = d.axis(x), d.rng.choice([2, 3])
    dims = replaced(x.dims, at, f"{k}*{bracketed(x.dims[at])}")
    times = ", ".join(str(k) if i == at else "1" for i in range(x.rank))
    texts = [f"{x.name}.repeat({times})", f"{x.name}.repeat_interleave({k}, {at})", f"torch.tile({x.name}, ({times},))"]
    return d.let(d.rng.choice(texts), dims)


@operation("repeat")
def padded(d: Draft, x: Value) -> Value | None:
    left, right = d.rng.choice([0, 1, 2]), d.rng.choice([-1, 0, 1, 2])
    n = bracketed(x.dims[-1])
    modes = ["constant"] * 3 + (["reflect", "replicate", "circular"] if x.rank == 3 and right >= 0 else [])
    text = f'F.pad({x.name}, ({left}, {right}), mode="{d.rng.choice(modes)}")'
    return d.let(text, replaced(x.dims, -1, f"{n}+{left + right}" if left + right >= 0 else f"{n}-{-left - right}"))


@operation("repeat")
def turned(d: Draft, x: Value) -> Value | None:
    at = d.axis(x)
    k = d.rng.choice(["1", d.size(x, at) + "//2"])
    return d.let(d.rng.choice([f"{x.name}.roll({k}, {at})", f"{x.name}.flip({at})"]), x.dims)


@operation("repeat")
def diagonal(d: Draft, x: Value) -> Value | None:
    if x.rank != 2:
        return None
    return d.let(f"({x.name} @ {x.name}.T).diagonal()", (x.dims[0],))


@operation("repeat")
def unsqueezed(d: Draft, x: Value) -> Value | None:
    at, name = d.rng.randrange(x.rank + 1), d.rng.choice(d.names)
    if x.rank >= 4:
        return None
    if d.rng.random() < 0.5:
        return d.let(f"{x.name}.unsqueeze({at})", (*x.dims[:at], "1", *x.dims[at:]))
    sizes = ", ".join(name if i == at else "-1" for i in range(x.rank + 1))
    return d.let(f"{x.name}.unsqueeze({at}).expand({sizes})", (*x.dims[:at], name, *x.dims[at:]))
