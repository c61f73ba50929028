"""More of what losses are made of: layers with state of their own, spectra, factorisations, derivatives, draws."""

from tests.fuzz.drafts import Draft, Value, over

SPECTRAL = """
torch.fft.irfft(torch.fft.rfft({x}.double()) * {w}.double(), n={n}) |
torch.fft.fft({x}.double()).abs() * 0.2 | torch.complex({x}.double(), 1 + {x}.double().square()).angle() |
torch.view_as_real(torch.fft.rfft({x}.double(), norm='ortho')).sum((-1, -2)).unsqueeze(-1) * {w}[0] + {x} |
(torch.polar({x}.double().abs() + 0.1, {x}.double()) * (1 + 2j)).real * {w}[0] |
torch.complex({x}.double(), {x}.double().sin()).exp().imag * 0.3 |
torch.fft.fftshift(torch.fft.ifft(torch.fft.fft({x}.double())).real, -1) + {w}[0]
"""
FACTORED = """
torch.linalg.solve({s}, {x}.double().T).T | {x}.double() @ torch.linalg.inv({s}) | {x} + {s}.logdet() |
{x}.double() @ torch.linalg.cholesky({s}) * 0.5 | {x} * torch.linalg.slogdet({s})[1] |
{x} + torch.linalg.eigvalsh({s}) * 0.1 | {x}.double() @ torch.matrix_exp(-{s}) + {x} |
torch.linalg.solve_triangular({s}.tril(), {x}.double().T, upper=False).T
"""
NORMS = """
{x} / (torch.linalg.vector_norm({x}, {p}, dim=-1, keepdim=True) + 0.5) | F.normalize({x}, p=1.0, dim=0) |
{x} * torch.linalg.vector_norm({x}, {p}) * 0.1 | F.cosine_similarity({x}, {x}.flip(-1), -1).unsqueeze(-1) + {x} |
{x} / ({x}.var(-1, keepdim=True, correction=0) + 0.3).sqrt() | {x} - {x}.mean() + {x}.std() |
F.pairwise_distance({x}, {x}.flip(0) + 1).unsqueeze(-1) * 0.2 + {x} | {x} / ({x}.abs().amax(-1, keepdim=True) + 0.1)
"""
RECURRENT = """
nn.LSTM({n}, {h}, batch_first=True) | nn.GRU({n}, {h}, batch_first=True) | nn.RNN({n}, {h}, batch_first=True) |
nn.LSTM({n}, {h}, batch_first=True, bidirectional=True)
"""
LAYERS = """
nn.BatchNorm1d({n}) | nn.BatchNorm1d({n}, momentum=None) | nn.PReLU() | nn.LayerNorm({n}) | nn.RMSNorm({n}) |
nn.utils.parametrizations.weight_norm(nn.Linear({n}, {n})) | nn.BatchNorm1d({n}, affine=False) | nn.PReLU({n}) |
nn.Sequential(nn.Linear({n}, {n}), nn.SiLU(), nn.Linear({n}, {n})) | nn.Sequential(nn.Tanh(), nn.Softmax(-1))
"""
DIFFERENTIATED = """
torch.func.grad(lambda v: ({f}).sum())({x}) | torch.func.jvp(lambda v: {f}, ({x},), ({x}.cos(),))[1] |
torch.func.vmap(lambda v: {f})({x}) | torch.func.vjp(lambda v: {f}, {x})[1]({x}.sin())[0]
"""
INNER = "v.sin() * {s} | (v * {s}).tanh() | v.square().mul({s}).exp().mul(0.1) | F.silu(v) * {s}"
DRAWN = """
{x} + torch.randn_like({x}) * 0.1 | {x} * torch.rand({x}.shape[:1]).to({x}.dtype).mean() |
F.gumbel_softmax({x}, dim=-1) + {x} | {x} * torch.bernoulli(torch.full_like({x}, 0.7)) | F.alpha_dropout({x}, 0.2) |
F.feature_alpha_dropout({x}, 0.2) | F.rrelu({x}, training=True) | {x} + torch.normal({x}.detach(), 0.1) |
{x}[torch.randperm({x}.shape[0])] * 0.5 + {x} | {x} * torch.randint(1, 4, {x}.shape).to({x}.dtype) |
{x} + torch.empty_like({x}).uniform_(-0.1, 0.1) | {x} + torch.empty_like({x}).exponential_() * 0.1
"""


def as_before(text: str, x: Value) -> str:
    """An expression in double precision, in the dtype of a value."""
    return f"({text}).to({x.name}.dtype)"


@over(2, 3)
def spectral(d: Draft, x: Value) -> Value:
    return d.let(as_before(d.one_of(SPECTRAL, x, w=d.param(x.last // 2 + 1), n=x.last), x), x.dims)


@over(2)
def factored(d: Draft, x: Value) -> Value:
    y = f"{x.name}.double()"
    square = f"({y}.T @ {y} / {x.name}.shape[0] + torch.eye({x.last}).double())"
    return d.let(as_before(d.one_of(FACTORED, x, s=square), x), x.dims)


@over(2, 3, 4)
def norms(d: Draft, x: Value) -> Value:
    return d.let(d.one_of(NORMS, x, p=d.rng.choice(["1", "2", "3", "0.5", "torch.inf"])), x.dims)


@over(3)
def recurrent(d: Draft, x: Value) -> Value | None:
    if not d.in_module:
        return None
    hidden = d.rng.choice([2, 4, 5])
    made = d.one_of(RECURRENT, x, n=x.last, h=hidden)
    return d.let(f"{d.module(made)}({x.name})[0]", (*x.dims[:-1], hidden * (2 if "bidirectional" in made else 1)))


@over(3)
def block(d: Draft, x: Value) -> Value | None:
    if not d.in_module or x.last % 2:
        return None
    rest = f"activation={d.rng.choice(['F.relu', 'F.gelu'])}, norm_first={d.rng.choice(['True', 'False'])}"
    made = f"nn.TransformerEncoderLayer({x.last}, 2, 8, dropout=0.0, batch_first=True, {rest})"
    return d.let(f"{d.module(made)}({x.name})", x.dims)


@over(2)
def layer(d: Draft, x: Value) -> Value | None:
    if not d.in_module:
        return None
    return d.let(f"{d.module(d.one_of(LAYERS, x, n=x.last))}({x.name})", x.dims)


@over(2)
def bagged(d: Draft, x: Value) -> Value:
    rows = d.rng.choice([3, 6])
    i = d.input((x.dims[0], 3), "Int", rows)
    if d.in_module and d.rng.random() < 0.5:
        return d.let(f"{d.module(f'nn.Embedding({rows}, {x.last}, padding_idx=0)')}({i}).mean(1) + {x.name}", x.dims)
    mode = d.rng.choice(["sum", "mean", "max"])
    return d.let(f"F.embedding_bag({i}, {d.param(rows, x.last)}, mode='{mode}') + {x.name}", x.dims)


@over(2, 3, 4)
def differentiated(d: Draft, x: Value) -> Value:
    """Derivatives within the loss: a gradient, products with a Jacobian, a map over rows."""
    return d.let(d.one_of(DIFFERENTIATED, x, f=d.one_of(INNER, x, s=d.param(1))), x.dims)


@over(2, 3, 4)
def drawing(d: Draft, x: Value) -> Value | None:
    if d.rng.random() < 0.7:  # a loss that draws is held at its first batch alone
        return None
    d.draws = True
    return d.let(d.one_of(DRAWN, x), x.dims)
