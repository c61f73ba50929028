"""Generative and contrastive learning: autoencoders, diffusion, flows, adversaries, energies, pairs."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, init


class VAE(ParamList):
    encode: Float[Tensor, "pixels hidden"]
    mean: Float[Tensor, "hidden latent"]
    log_variance: Float[Tensor, "hidden latent"]
    decode: Float[Tensor, "latent hidden"]
    out: Float[Tensor, "hidden pixels"]


def vae_loss(p: VAE, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    h = F.relu(x @ p.encode)
    mean, log_variance = h @ p.mean, h @ p.log_variance
    z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
    logits = F.relu(z @ p.decode) @ p.out
    reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    return (reconstruction + divergence) / x.shape[0]


class Denoiser(ParamList):
    time: Float[Tensor, "dim channels"]
    conv1: Float[Tensor, "channels 3 3 3"]
    conv2: Float[Tensor, "3 channels 3 3"]


def diffusion_loss(
    p: Denoiser,
    image: Float[Tensor, "batch 3 height width"],
    noise: Float[Tensor, "batch 3 height width"],
    step: Int[Tensor, " batch"],
    alpha_bar: Float[Tensor, " steps"],
) -> Float[Tensor, ""]:
    kept = alpha_bar[step].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * image + (1 - kept).sqrt() * noise
    half = p.time.shape[0] // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half) / half)
    angle = step[:, None] * frequency[None]
    embedded = torch.cat([angle.sin(), angle.cos()], dim=-1) @ p.time
    h = F.silu(F.conv2d(noisy, p.conv1, padding=1) + embedded[:, :, None, None])
    return F.mse_loss(F.conv2d(h, p.conv2, padding=1), noise)


class Velocity(ParamList):
    w1: Float[Tensor, "dim+1 hidden"]
    w2: Float[Tensor, "hidden dim"]


def flow_matching_loss(
    p: Velocity, x0: Float[Tensor, "batch dim"], x1: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    at = t[:, None]
    xt = (1 - at) * x0 + at * x1
    velocity = F.gelu(torch.cat([xt, at], dim=-1) @ p.w1) @ p.w2
    return (velocity - (x1 - x0)).square().sum(-1).mean()


class Coupling(ParamList):
    w1: Float[Tensor, "half hidden"]
    w2: Float[Tensor, "hidden 2*half"]


def coupling_flow_loss(p: Coupling, x: Float[Tensor, "batch 2*half"]) -> Float[Tensor, ""]:
    kept, changed = x.chunk(2, dim=1)
    log_scale, shift = (F.relu(kept @ p.w1) @ p.w2).chunk(2, dim=1)
    z = torch.cat([kept, changed * torch.exp(torch.tanh(log_scale)) + shift], dim=1)
    log_density = -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1) + torch.tanh(log_scale).sum(dim=1)
    return -log_density.mean()


class Codebook(ParamList):
    encode: Float[Tensor, "features dim"]
    codes: Float[Tensor, "codes dim"]
    decode: Float[Tensor, "dim features"]


def vector_quantised_loss(p: Codebook, x: Float[Tensor, "batch seq features"]) -> Float[Tensor, ""]:
    z = x @ p.encode
    flat = z.reshape(-1, z.shape[-1])
    distance = flat.square().sum(1, keepdim=True) - 2 * flat @ p.codes.T + p.codes.square().sum(1)
    quantised = p.codes[distance.argmin(dim=1)].view(z.shape)
    commitment = F.mse_loss(z, quantised.detach()) + F.mse_loss(quantised, z.detach())
    decoded = (z + (quantised - z).detach()) @ p.decode
    return F.mse_loss(decoded, x) + 0.25 * commitment


class Generator(ParamList):
    w1: Float[Tensor, "latent hidden"]
    w2: Float[Tensor, "hidden pixels"]


class Critic(ParamList):
    w1: Float[Tensor, "pixels units"]
    w2: Float[Tensor, "units 1"]


def gradient_penalty_loss(
    critic: Critic,
    real: Float[Tensor, "batch pixels"],
    fake: Float[Tensor, "batch pixels"],
    mix: Float[Tensor, "batch 1"],
) -> Float[Tensor, ""]:
    def score(x: Tensor) -> Tensor:
        return (F.leaky_relu(x @ critic.w1, 0.2) @ critic.w2).squeeze(1)

    between = (mix * real + (1 - mix) * fake).requires_grad_(True)
    (slope,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    penalty = (slope.norm(2, dim=1) - 1).square().mean()
    return score(fake).mean() - score(real).mean() + 10 * penalty


def generator_loss(generator: Generator, critic: Critic, z: Float[Tensor, "batch latent"]) -> Float[Tensor, ""]:
    image = torch.tanh(F.relu(z @ generator.w1) @ generator.w2)
    return F.softplus(-(F.leaky_relu(image @ critic.w1, 0.2) @ critic.w2)).mean()


class Score(ParamList):
    w1: Float[Tensor, "dim hidden"]
    b1: Float[Tensor, " hidden"]
    w2: Float[Tensor, "hidden dim"]


def sliced_score_matching_loss(
    p: Score, x: Float[Tensor, "batch dim"], direction: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    def score(x: Tensor) -> Tensor:
        return F.softplus(x @ p.w1 + p.b1) @ p.w2

    value, product = torch.func.jvp(score, (x,), (direction,))  # type: ignore[misc]
    return ((direction * product).sum(-1) + 0.5 * (direction * value).sum(-1).square()).mean()


class MixtureDensity(ParamList):
    w: Float[Tensor, "features hidden"]
    weights: Float[Tensor, "hidden k"]
    means: Float[Tensor, "hidden k*targets"]
    scales: Float[Tensor, "hidden k"]


def mixture_density_loss(
    p: MixtureDensity, x: Float[Tensor, "batch features"], y: Float[Tensor, "batch targets"]
) -> Float[Tensor, ""]:
    h = torch.tanh(x @ p.w)
    log_weight = F.log_softmax(h @ p.weights, dim=-1)
    mean = (h @ p.means).view(x.shape[0], -1, y.shape[1])
    log_scale = h @ p.scales
    error = ((y.unsqueeze(1) - mean) / log_scale.exp().unsqueeze(-1)).square().sum(-1)
    return -torch.logsumexp(log_weight - 0.5 * error - y.shape[1] * log_scale, dim=-1).mean()


class Towers(ParamList):
    image: Float[Tensor, "pixels dim"]
    text: Float[Tensor, "words dim"]
    log_temperature: Float[Tensor, ""] = init.constant(2.6)


def clip_loss(p: Towers, image: Float[Tensor, "batch pixels"], text: Float[Tensor, "batch words"]) -> Float[Tensor, ""]:
    i = F.normalize(image @ p.image, dim=-1)
    t = F.normalize(text @ p.text, dim=-1)
    logits = p.log_temperature.exp() * i @ t.t()
    labels = torch.arange(logits.shape[0])
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2


class Projection(ParamList):
    w: Float[Tensor, "features dim"]


def nt_xent_loss(
    p: Projection, first: Float[Tensor, "batch features"], second: Float[Tensor, "batch features"]
) -> Float[Tensor, ""]:
    n = first.shape[0]
    z = F.normalize(torch.cat([first, second]) @ p.w, dim=1)
    similarity = (z @ z.T / 0.5).masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
    partner = torch.cat([torch.arange(n) + n, torch.arange(n)])
    return F.cross_entropy(similarity, partner)


def barlow_twins_loss(
    p: Projection, first: Float[Tensor, "batch features"], second: Float[Tensor, "batch features"]
) -> Float[Tensor, ""]:
    a, b = ((z - z.mean(0)) / (z.std(0) + 1e-5) for z in (first @ p.w, second @ p.w))
    correlation = a.T @ b / a.shape[0]
    d = correlation.shape[0]
    on = (correlation.diagonal() - 1).pow(2).sum()
    off = correlation.flatten()[:-1].view(d - 1, d + 1)[:, 1:].pow(2).sum()
    return on + 0.005 * off


def triplet_loss(
    p: Projection,
    anchor: Float[Tensor, "batch features"],
    positive: Float[Tensor, "batch features"],
    negatives: Float[Tensor, "batch n features"],
    margin: float = 0.3,
) -> Float[Tensor, ""]:
    a, good, bad = anchor @ p.w, positive @ p.w, negatives @ p.w
    near = (a - good).norm(dim=-1)
    far = (a.unsqueeze(1) - bad).norm(dim=-1)
    return F.relu(near.unsqueeze(1) - far.amin(dim=1, keepdim=True) + margin).mean()


def supervised_contrastive_loss(
    p: Projection, x: Float[Tensor, "batch features"], label: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    z = F.normalize(x @ p.w, dim=1)
    itself = torch.eye(x.shape[0], dtype=torch.bool)
    same = (label[:, None] == label[None, :]) & ~itself
    log_probability = (z @ z.T / 0.1).masked_fill(itself, -1e9).log_softmax(dim=1)
    return -((same * log_probability).sum(1) / same.sum(1).clamp(min=1)).mean()
