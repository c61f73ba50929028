"""Statistics and scientific computing: regression, kernels, filters, transport, and derivatives inside a loss."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shaped import ParamList, init


class MLP(ParamList):
    w1: Float[Tensor, "pixels hidden"]
    b1: Float[Tensor, " hidden"] = init.zeros()
    w2: Float[Tensor, "hidden classes"]
    b2: Float[Tensor, " classes"] = init.zeros()


def mlp_loss(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.relu(x @ p.w1 + p.b1)
    return F.cross_entropy(h @ p.w2 + p.b2, y, label_smoothing=0.1)


class Regressor(ParamList):
    w1: Float[Tensor, "hidden features"]
    b1: Float[Tensor, " hidden"]
    w2: Float[Tensor, "1 hidden"]
    b2: Float[Tensor, " 1"]


def regression_loss(
    p: Regressor, x: Float[Tensor, "batch features"], y: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:  # fmt: skip
    h = torch.tanh(F.linear(x, p.w1, p.b1))
    prediction = F.linear(h, p.w2, p.b2).squeeze(-1)
    return ((prediction - y) ** 2).mean()


class Logistic(ParamList):
    w: Float[Tensor, " features"]
    b: Float[Tensor, ""]


def logistic_loss(
    p: Logistic, x: Float[Tensor, "batch features"], y: Bool[Tensor, " batch"], decay: float = 1e-3
) -> Float[Tensor, ""]:
    logits = x @ p.w + p.b
    return F.binary_cross_entropy_with_logits(logits, y.float()) + decay * p.w.square().sum()


def newton_step(
    w: Float[Tensor, " features"], x: Float[Tensor, "batch features"], y: Float[Tensor, " batch"]
) -> Float[Tensor, " features"]:
    probability = torch.sigmoid(x @ w)
    gradient = x.T @ (probability - y)
    hessian = x.T @ ((probability * (1 - probability))[:, None] * x)
    return w - torch.linalg.solve(hessian + 1e-4 * torch.eye(w.shape[0]), gradient)


class GaussianProcess(ParamList):
    log_scale: Float[Tensor, " features"]
    log_variance: Float[Tensor, ""]
    log_noise: Float[Tensor, ""]


def gaussian_process_loss(
    p: GaussianProcess, x: Float[Tensor, "points features"], y: Float[Tensor, " points"]
) -> Float[Tensor, ""]:
    n = x.shape[0]
    scaled = x / p.log_scale.exp()
    distance = (scaled[:, None] - scaled[None]).square().sum(-1)
    kernel = p.log_variance.exp() * torch.exp(-0.5 * distance)
    factor = torch.linalg.cholesky(kernel + p.log_noise.exp() * torch.eye(n))
    weights = torch.cholesky_solve(y[:, None], factor).squeeze(-1)
    return 0.5 * y @ weights + factor.diagonal().log().sum() + 0.5 * n * math.log(2 * math.pi)


def maximum_mean_discrepancy(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    within_x = torch.exp(-torch.cdist(x, x)).mean()
    within_y = torch.exp(-torch.cdist(y, y)).mean()
    return within_x + within_y - 2 * torch.exp(-torch.cdist(x, y)).mean()


def ridge_regression(
    x: Float[Tensor, "rows features"], y: Float[Tensor, "rows targets"], penalty: float = 0.1
) -> Float[Tensor, "features targets"]:
    gram = x.T @ x + penalty * torch.eye(x.shape[1])
    return torch.linalg.solve(gram, x.T @ y)


def principal_scores(x: Float[Tensor, "rows features"], k: int = 2) -> Float[Tensor, "rows 2"]:
    centred = x - x.mean(0, keepdim=True)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:k].T


class Field(ParamList):
    w1: Float[Tensor, "2 hidden"]
    b1: Float[Tensor, " hidden"]
    w2: Float[Tensor, "hidden 1"]


def heat_equation_loss(
    p: Field, inside: Float[Tensor, "points 2"], start: Float[Tensor, "starts 2"], value: Float[Tensor, " starts"]
) -> Float[Tensor, ""]:
    def field(tx: Tensor) -> Tensor:
        return (torch.tanh(tx @ p.w1 + p.b1) @ p.w2).squeeze(-1)

    tx = inside.clone().requires_grad_(True)
    (first,) = torch.autograd.grad(field(tx).sum(), tx, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 1].sum(), tx, create_graph=True)
    residual = first[:, 0] - 0.1 * second[:, 1]
    return residual.square().mean() + F.mse_loss(field(start), value)


def per_example_gradient_norms(
    w: Float[Tensor, "features classes"], x: Float[Tensor, "batch features"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x @ w, y)

    gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(w, x, y)
    return gradients.flatten(1).norm(dim=1)


def kalman_step(
    mean: Float[Tensor, "batch state"],
    cov: Float[Tensor, "batch state state"],
    observed: Float[Tensor, "batch obs"],
    transition: Float[Tensor, "state state"],
    emission: Float[Tensor, "obs state"],
    process: Float[Tensor, "state state"],
    noise: Float[Tensor, "obs obs"],
) -> tuple[Float[Tensor, "batch state"], Float[Tensor, "batch state state"]]:
    mean = mean @ transition.T
    cov = transition @ cov @ transition.T + process
    innovation = observed - mean @ emission.T
    spread = emission @ cov @ emission.T + noise
    gain = torch.linalg.solve(spread, emission @ cov).transpose(-1, -2)
    mean = mean + (gain @ innovation[..., None]).squeeze(-1)
    cov = (torch.eye(cov.shape[-1]) - gain @ emission) @ cov
    return mean, cov


def sinkhorn_distance(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], epsilon: float = 0.1, steps: int = 5
) -> Float[Tensor, ""]:
    cost = torch.cdist(x, y).square()
    f, g = torch.zeros(x.shape[0]), torch.zeros(y.shape[0])
    for _ in range(steps):
        f = -epsilon * torch.logsumexp((g[None, :] - cost) / epsilon, dim=1)
        g = -epsilon * torch.logsumexp((f[:, None] - cost) / epsilon, dim=0)
    plan = torch.exp((f[:, None] + g[None, :] - cost) / epsilon)
    return (plan * cost).sum()


class Hazard(ParamList):
    w: Float[Tensor, "covariates 1"]


def cox_loss(
    p: Hazard,
    x: Float[Tensor, "patients covariates"],
    time: Float[Tensor, " patients"],
    died: Bool[Tensor, " patients"],
) -> Float[Tensor, ""]:
    order = time.argsort(descending=True)
    risk = (x @ p.w).squeeze(-1)[order]
    at_risk = torch.logcumsumexp(risk, dim=0)
    events = died[order].float()
    return -((risk - at_risk) * events).sum() / events.sum().clamp(min=1)


class Quantiles(ParamList):
    w: Float[Tensor, "features quantiles"]
    b: Float[Tensor, " quantiles"]


def pinball_loss(
    p: Quantiles,
    x: Float[Tensor, "batch features"],
    y: Float[Tensor, " batch"],
    levels: Float[Tensor, " quantiles"],
) -> Float[Tensor, ""]:
    error = y.unsqueeze(-1) - (x @ p.w + p.b)
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def pairwise_ranking_loss(
    p: Logistic, x: Float[Tensor, "items features"], relevance: Float[Tensor, " items"]
) -> Float[Tensor, ""]:
    score = x @ p.w + p.b
    better = relevance[:, None] > relevance
    return (F.softplus(score - score[:, None]) * better).sum() / better.sum().clamp(min=1)


def energy_score(samples: Float[Tensor, "batch members"], observed: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    skill = (samples - observed[:, None]).abs().mean(-1)
    spread = (samples[:, :, None] - samples[:, None]).abs().mean((1, 2))
    return (skill - 0.5 * spread).mean()


def gini_coefficient(income: Float[Tensor, " people"]) -> Float[Tensor, ""]:
    return (income[:, None] - income).abs().mean() / (2 * income.mean())


class Mixture(ParamList):
    logits: Float[Tensor, " components"]
    means: Float[Tensor, "components d"]
    log_stds: Float[Tensor, "components d"]


def gaussian_mixture_loss(p: Mixture, x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    z = (x[:, None, :] - p.means) * torch.exp(-p.log_stds)
    log_density = -0.5 * z.square().sum(-1) - p.log_stds.sum(-1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
    return -torch.logsumexp(F.log_softmax(p.logits, dim=0) + log_density, dim=-1).mean()


class Factors(ParamList):
    users: Float[Tensor, "users rank"]
    items: Float[Tensor, "items rank"]
    user_bias: Float[Tensor, " users"]
    item_bias: Float[Tensor, " items"]


def ranking_loss(
    p: Factors, user: Int[Tensor, " batch"], liked: Int[Tensor, " batch"], others: Int[Tensor, "batch negatives"]
) -> Float[Tensor, ""]:
    u = p.users[user]
    positive = (u * p.items[liked]).sum(-1) + p.item_bias[liked]
    negative = torch.einsum("br,bnr->bn", u, p.items[others]) + p.item_bias[others]
    return -F.logsigmoid(positive[:, None] - negative).mean() + 1e-4 * p.user_bias[user].square().mean()


class Words(ParamList):
    table: Float[Tensor, "vocab dim"]
    head: Float[Tensor, "dim classes"]


def bag_of_words_loss(p: Words, words: Int[Tensor, "batch length"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(F.embedding_bag(words, p.table, mode="mean") @ p.head, y)
