"""Sequences in time: recurrent cells, scans, causal convolutions, chains, and returns."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shaped import ParamList


class GRU(ParamList):
    wx: Float[Tensor, "inputs 3*hidden"]
    wh: Float[Tensor, "hidden 3*hidden"]
    bx: Float[Tensor, " 3*hidden"]
    bh: Float[Tensor, " 3*hidden"]
    out: Float[Tensor, "hidden classes"]


def gru_loss(p: GRU, x: Float[Tensor, "batch time inputs"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = x.new_zeros(x.shape[0], p.wh.shape[0])
    for t in range(x.shape[1]):
        xr, xz, xn = (x[:, t] @ p.wx + p.bx).chunk(3, dim=-1)
        hr, hz, hn = (h @ p.wh + p.bh).chunk(3, dim=-1)
        reset, update = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        h = (1 - update) * torch.tanh(xn + reset * hn) + update * h
    return F.cross_entropy(h @ p.out, y)


class LSTM(ParamList):
    table: Float[Tensor, "vocab dim"]
    wx: Float[Tensor, "4*hidden dim"]
    wh: Float[Tensor, "4*hidden hidden"]
    b: Float[Tensor, " 4*hidden"]
    out: Float[Tensor, "vocab hidden"]


def lstm_language_loss(p: LSTM, ids: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
    batch, time = ids.shape
    embedded = p.table[ids]
    h = c = torch.zeros(batch, p.wh.size(1))
    states = []
    for t in range(time - 1):
        i, f, g, o = (F.linear(embedded[:, t], p.wx, p.b) + F.linear(h, p.wh)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    logits = F.linear(torch.stack(states, dim=1), p.out)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


class Dilated(ParamList):
    filter: Float[Tensor, "residual residual 2"]
    gate: Float[Tensor, "residual residual 2"]
    skip: Float[Tensor, "skips residual 1"]
    residual: Float[Tensor, "residual residual 1"]


class WaveNet(ParamList):
    first: Float[Tensor, "residual levels 1"]
    layers: list[Dilated] = 4  # type: ignore[assignment]
    post: Float[Tensor, "levels skips 1"]


def wavenet_loss(p: WaveNet, audio: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
    x = F.one_hot(audio, p.first.shape[1]).float().transpose(1, 2)
    x = F.conv1d(x, p.first)
    skips = []
    for i, layer in enumerate(p.layers):
        past = F.pad(x, (2**i, 0))
        filtered = torch.tanh(F.conv1d(past, layer.filter, dilation=2**i))
        z = filtered * torch.sigmoid(F.conv1d(past, layer.gate, dilation=2**i))
        skips.append(F.conv1d(z, layer.skip))
        x = x + F.conv1d(z, layer.residual)
    logits = F.conv1d(F.relu(torch.stack(skips).sum(0)), p.post)
    return F.cross_entropy(logits[:, :, :-1], audio[:, 1:])


class TCN(ParamList):
    conv: Float[Tensor, "channels channels 3"]
    out: Float[Tensor, "horizon channels"]


def forecast_loss(
    p: TCN, x: Float[Tensor, "batch channels time"], y: Float[Tensor, "batch horizon"]
) -> Float[Tensor, ""]:
    h = x + F.relu(F.conv1d(F.pad(x, (2, 0)), p.conv))
    return F.smooth_l1_loss(h[:, :, -1] @ p.out.t(), y)


def matched_filter(
    signal: Float[Tensor, "batch channels time"], template: Float[Tensor, "filters channels k"]
) -> Float[Tensor, "batch filters time-k+1"]:
    unit = F.normalize(template.flatten(1), dim=1).view_as(template)
    return F.conv1d(signal, unit)


def long_convolution(
    u: Float[Tensor, "batch seq dim"], kernel: Float[Tensor, "seq dim"], skip: Float[Tensor, " dim"]
) -> Float[Tensor, "batch seq dim"]:
    n = u.shape[1]
    spectrum = torch.fft.rfft(u, n=2 * n, dim=1) * torch.fft.rfft(kernel, n=2 * n, dim=0)
    return torch.fft.irfft(spectrum, n=2 * n, dim=1)[:, :n] + u * skip


class DiagonalSSM(ParamList):
    log_decay: Float[Tensor, "dim state"]
    b: Float[Tensor, "dim state"]
    c: Float[Tensor, "dim state"]
    skip: Float[Tensor, " dim"]


def state_space_scan(p: DiagonalSSM, u: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
    steps = torch.arange(u.shape[1])
    powers = torch.exp(-p.log_decay.exp()[..., None] * steps)
    kernel = torch.einsum("dn,dn,dnl->dl", p.b, p.c, powers)
    lag = steps[:, None] - steps
    toeplitz = torch.where(lag >= 0, kernel[:, lag.clamp(min=0)], 0.0)
    return torch.einsum("dts,bsd->btd", toeplitz, u) + u * p.skip


class Selective(ParamList):
    log_a: Float[Tensor, "dim state"]
    w_bc: Float[Tensor, "dim 2*state"]
    w_dt: Float[Tensor, "dim dim"]


def selective_scan(p: Selective, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
    b, c = (x @ p.w_bc).split(p.log_a.shape[1], dim=-1)
    dt = F.softplus(x @ p.w_dt)
    log_decay = dt.unsqueeze(-1) * -p.log_a.exp()
    total = log_decay.cumsum(dim=1)
    inputs = (dt * x).unsqueeze(-1) * b.unsqueeze(2)
    state = torch.exp(total) * (inputs * torch.exp(-total)).cumsum(dim=1)
    return (state * c.unsqueeze(2)).sum(-1)


class MinGRU(ParamList):
    wz: Float[Tensor, "dim hidden"]
    wh: Float[Tensor, "dim hidden"]


def minimal_gru(p: MinGRU, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq hidden"]:
    k = x @ p.wz
    log_keep, log_write = -F.softplus(k), -F.softplus(-k)
    kept = log_keep.cumsum(1)
    values = log_write + F.logsigmoid(x @ p.wh)
    return torch.exp(kept + (values - kept).logcumsumexp(1))


class TokenShift(ParamList):
    mix: Float[Tensor, " dim"]
    key: Float[Tensor, "dim hidden"]
    value: Float[Tensor, "hidden dim"]
    receptance: Float[Tensor, "dim dim"]


def channel_mixing(p: TokenShift, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
    before = F.pad(x, (0, 0, 1, -1))
    mixed = x * p.mix + before * (1 - p.mix)
    return torch.sigmoid(mixed @ p.receptance) * (F.relu(mixed @ p.key).square() @ p.value)


class CRF(ParamList):
    transitions: Float[Tensor, "tags tags"]
    start: Float[Tensor, " tags"]


def crf_loss(p: CRF, emissions: Float[Tensor, "batch time tags"], tags: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
    alpha = p.start + emissions[:, 0]
    for t in range(1, emissions.shape[1]):
        alpha = torch.logsumexp(alpha[:, :, None] + p.transitions, dim=1) + emissions[:, t]
    score = emissions.gather(2, tags[..., None]).squeeze(-1).sum(1) + p.start[tags[:, 0]]
    score = score + p.transitions[tags[:, :-1], tags[:, 1:]].sum(1)
    return (alpha.logsumexp(-1) - score).mean()


class Bahdanau(ParamList):
    wq: Float[Tensor, "hidden units"]
    wk: Float[Tensor, "encoded units"]
    v: Float[Tensor, " units"]


def additive_attention(
    p: Bahdanau,
    query: Float[Tensor, "batch hidden"],
    keys: Float[Tensor, "batch source encoded"],
    pad: Bool[Tensor, "batch source"],
) -> tuple[Float[Tensor, "batch encoded"], Float[Tensor, "batch source"]]:
    energy = torch.tanh((query @ p.wq).unsqueeze(1) + keys @ p.wk) @ p.v
    weights = energy.masked_fill(pad, -1e9).softmax(dim=1)
    return torch.bmm(weights.unsqueeze(1), keys).squeeze(1), weights


class ActorCritic(ParamList):
    trunk: Float[Tensor, "obs hidden"]
    actor: Float[Tensor, "hidden actions"]
    critic: Float[Tensor, "hidden 1"]


def policy_gradient_loss(
    p: ActorCritic,
    obs: Float[Tensor, "batch time obs"],
    action: Int[Tensor, "batch time"],
    reward: Float[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    h = torch.tanh(obs @ p.trunk)
    log_probability = (h @ p.actor).log_softmax(-1)
    taken = log_probability.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    returns = reward.flip(1).cumsum(1).flip(1)
    advantage = returns - (h @ p.critic).squeeze(-1)
    entropy = -(log_probability.exp() * log_probability).sum(-1)
    return (-taken * advantage.detach() + 0.5 * advantage.square() - 0.01 * entropy).mean()


class QNetwork(ParamList):
    trunk: Float[Tensor, "obs hidden"]
    head: Float[Tensor, "hidden actions"]


def q_learning_loss(
    online: QNetwork,
    obs: Float[Tensor, "batch obs"],
    action: Int[Tensor, " batch"],
    reward: Float[Tensor, " batch"],
    following: Float[Tensor, "batch obs"],
    done: Bool[Tensor, " batch"],
    gamma: float = 0.99,
) -> Float[Tensor, ""]:
    values = F.relu(obs @ online.trunk) @ online.head
    chosen = values.gather(1, action[:, None]).squeeze(1)
    with torch.no_grad():
        best = (F.relu(following @ online.trunk) @ online.head).max(dim=1).values
        target = reward + gamma * best * ~done
    return F.smooth_l1_loss(chosen, target)
