"""The JAX contender of `steps.py`, for an environment of its own: `pip install "jax[cpu]" optax numpy`.

    python step_jax.py MODEL START.npz

The losses are those of `step_models.py`, over lists of arrays in the same order. The whole step is one jitted function
with donated buffers; the batch lies on the device. Steps are submitted without waiting, and a round ends when its last
loss is there.
"""

import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy
import optax
from step_worker import Step, serve

LR, BETAS, EPS, WEIGHT_DECAY = 1e-4, (0.9, 0.999), 1e-8, 1e-2
HEADS = 4


def cross_entropy(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def line_loss(p: list[Any], x: Any, y: Any) -> Any:
    w, b = p
    return jnp.square(x @ w + b - y).mean()


def mlp_loss(p: list[Any], x: Any, y: Any) -> Any:
    w1, b1, w2, b2 = p
    return cross_entropy(jax.nn.relu(x @ w1 + b1) @ w2 + b2, y)


def convolved(x: Any, kernel: Any, bias: Any) -> Any:
    """3x3 with padding 1, relu, and the maximum of each 2x2."""
    h = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NCHW", "OIHW", "NCHW"))
    h = jax.nn.relu(h + bias[:, None, None])
    return jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def cnn_loss(p: list[Any], x: Any, y: Any) -> Any:
    k1, b1, k2, b2, head, b3 = p
    h = convolved(convolved(x, k1, b1), k2, b2)
    return cross_entropy(h.reshape(h.shape[0], -1) @ head + b3, y)


def norm(h: Any, gain: Any) -> Any:
    mean = h.mean(-1, keepdims=True)
    return (h - mean) * jax.lax.rsqrt(jnp.square(h - mean).mean(-1, keepdims=True) + 1e-5) * gain


def gpt_loss(p: list[Any], x: Any, y: Any) -> Any:
    tokens, places, *blocks, last = p
    b, t = x.shape
    h = tokens[x] + places[:t]
    d = h.shape[-1]
    for norm1, qkv, out, norm2, up, down in zip(*[iter(blocks)] * 6, strict=True):
        parts = jnp.split(norm(h, norm1) @ qkv, 3, axis=-1)
        q, k, v = (part.reshape(b, t, HEADS, d // HEADS) for part in parts)
        h = h + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(b, t, d) @ out
        h = h + jax.nn.gelu(norm(h, norm2) @ up, approximate=False) @ down
    logits = norm(h, last) @ tokens.T
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


LOSSES = {"linear regression": line_loss, "mlp": mlp_loss, "cnn": cnn_loss, "char gpt": gpt_loss}


def make(name: str, params: list[Any], batch: list[Any]) -> Step:
    rule = optax.adamw(LR, b1=BETAS[0], b2=BETAS[1], eps=EPS, weight_decay=WEIGHT_DECAY)
    loss = LOSSES[name]

    def take(params: Any, state: Any, *inputs: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, *inputs)
        updates, state = rule.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    compiled = jax.jit(take, donate_argnums=(0, 1))
    held = [params, rule.init(params)]

    def step() -> Any:
        held[0], held[1], value = compiled(held[0], held[1], *batch)
        return value

    return step


def main() -> None:
    name, start = sys.argv[1:3]
    if folder := os.environ.get("STEPS_CACHE"):  # on disk, as Inductor has it by itself
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    saved = numpy.load(start)
    params = [jnp.asarray(saved[key]) for key in sorted(k for k in saved if k.startswith("p"))]
    batch = [jnp.asarray(saved[key]) for key in sorted(k for k in saved if k.startswith("x"))]
    serve(lambda: make(name, params, batch), lambda loss: loss.block_until_ready())


if __name__ == "__main__":
    main()
