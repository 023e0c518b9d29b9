"""A ViT in Flax, to be trained beside vitkit's: the encoder of the paper, no more.

Weights and optimizer are float32, the products bfloat16, as on the other side.
"""

from __future__ import annotations

import os
from typing import Any

import torch

# JAX takes most of a GPU's memory as it starts, and its CPU threads by this number.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("NPROC", str(torch.get_num_threads()))

import jax
import optax
from flax import linen
from jax import numpy as jnp

from racing import Step
from vitkit.models.vit import ViTConfig

LIKE = {"dtype": jnp.bfloat16}


class Encoder(linen.Module):
    """Images (B, H, W, 3) -> logits (B, K)."""

    config: Any  # a ViTConfig; Flax would not take apart what it does not know

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        config, side = self.config, (self.config.patch, self.config.patch)
        x = linen.Conv(config.width, side, strides=side, padding="VALID", **LIKE)(images)
        x = x.reshape(x.shape[0], -1, config.width)
        token = self.param("class_token", linen.initializers.zeros, (1, 1, config.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, config.width)), x], axis=1)
        small = linen.initializers.normal(0.02)
        x = x + self.param("positions", small, (1, config.tokens, config.width))
        x = x.astype(jnp.bfloat16)
        for _ in range(config.depth):
            y = linen.LayerNorm(epsilon=config.norm_eps, **LIKE)(x)
            x = x + linen.MultiHeadDotProductAttention(config.heads, **LIKE)(y, y)
            y = linen.LayerNorm(epsilon=config.norm_eps, **LIKE)(x)
            y = linen.gelu(linen.Dense(config.mlp_width, **LIKE)(y))
            x = x + linen.Dense(config.width, **LIKE)(y)
        x = linen.LayerNorm(epsilon=config.norm_eps, **LIKE)(x)
        return linen.Dense(config.classes, **LIKE)(x[:, 0])


def flax_step(config: ViTConfig, images: torch.Tensor, labels: torch.Tensor) -> Step:
    """A jitted step with optax's AdamW, on the batch (B, 3, H, W)."""
    device = jax.devices("gpu" if images.device.type == "cuda" else "cpu")[0]
    pixels = jax.device_put(images.permute(0, 2, 3, 1).cpu().numpy(), device)
    classes = jax.device_put(labels.cpu().numpy(), device)
    net = Encoder(config)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.1))

    def loss_of(weights: Any, pixels: jax.Array, classes: jax.Array) -> jax.Array:
        logits = net.apply(weights, pixels).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

    def update(weights: Any, moments: Any, pixels: jax.Array, classes: jax.Array) -> tuple:
        loss, gradients = jax.value_and_grad(loss_of)(weights, pixels, classes)
        changes, moments = optimizer.update(gradients, moments, weights)
        return optax.apply_updates(weights, changes), moments, loss

    compiled = jax.jit(update, donate_argnums=(0, 1))
    with jax.default_device(device):
        weights = jax.jit(net.init)(jax.random.key(0), pixels)
        moments = optimizer.init(weights)
    # Put there by name, as the step's results are: else the second step is compiled anew.
    state = list(jax.device_put((weights, moments), device))

    def step() -> jax.Array:
        state[0], state[1], loss = compiled(*state, pixels, classes)
        return loss

    return step
