"""Where each layer and head looks, read beside a pass of the net that stays as it is.

The net runs its own, fused attention. A hook takes what each chosen layer projects, its queries and
keys, and works out the rows of softmax(q k^T / sqrt(d)) that were asked for (appendix A, Eq. 6), so
that the logits of the pass are the same to the bit and a single row costs no more than T numbers.

Shapes: B images, L layers, h heads, T = prefix + N tokens, Q query tokens, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from vitkit.errors import UsageError
from vitkit.inspection.runs import device_of, evaluating
from vitkit.models import t2t
from vitkit.models.nets import Net, kind_of
from vitkit.models.restricted import may_attend
from vitkit.models.t2t import T2TViT
from vitkit.models.vit import Attention, VisionTransformer

Queries = Literal["class"] | int | Sequence[int] | None
AttentiveNet = VisionTransformer | T2TViT
AttentionLayer = Attention | t2t.Attention
AT_ONCE = 2**22  # numbers of maps that are worked out at once: 16 MiB in float32


def attention(
    net: Net,
    images: Tensor,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: Queries = None,
) -> Tensor:
    """Images (B, 3, H, W) -> attention (B, L, h, Q, T), float32, on the CPU; rows sum to 1.

    `layers` and `heads` choose some, negative ones from the end; None is all. `queries` are tokens
    whose rows are wanted: numbers, "class" for the class token, None for all T. Where attention is
    restricted to groups of patches, what a patch cannot see is 0. UsageError for a net without
    attention among tokens, and for a layer, head or token that it has not.
    """
    with (
        torch.inference_mode(), evaluating(net), recorded(net, layers, heads, queries) as maps,
    ):  # fmt: skip
        net(images.to(device_of(net)))
    return torch.stack(list(maps.values()), dim=1)


@contextmanager
def recorded(
    net: Net,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: Queries = None,
) -> Iterator[dict[int, Tensor]]:
    """Inside, every pass of the net leaves its attention in what is given: layer -> (B, h, Q, T).

    Arguments and errors as those of `attention`. Layers stand in the order asked for, and hold the
    newest pass; what the net returns is the same to the bit.
    """
    net = attentive(net)
    chosen_layers = numbers_of("layer", layers, len(net.blocks))
    chosen_heads = numbers_of("head", heads, net.config.heads)
    tokens = tokens_of(net, queries)
    maps: dict[int, Tensor] = dict.fromkeys(chosen_layers, torch.empty(0))

    def keep(reading: Reading) -> None:
        maps[reading.layer] = reading.rows(chosen_heads, tokens)

    with watched(net, chosen_layers, keep):
        yield maps


@dataclass(frozen=True)
class Reading:
    """What one layer's attention projects in a pass: enough to say where it looks."""

    layer: int
    module: AttentionLayer
    qkv: Tensor  # (B, T, 3 D), as the net computed it

    def part(self, number: int) -> Tensor:
        """Queries, keys or values (0, 1, 2) of all tokens: (B, h, T, d), a view."""
        return self.qkv.unflatten(-1, (3, self.module.heads, -1))[:, :, number].transpose(1, 2)

    def rows(self, heads: Sequence[int], tokens: Tensor | None) -> Tensor:
        """Attention of some tokens, all for None: (B, h, Q, T), float32, on the CPU."""
        images, length = self.qkv.shape[:2]
        queries = length if tokens is None else len(tokens)
        kept = torch.empty(images, len(heads), queries, length)
        step = max(1, AT_ONCE // max(1, len(heads) * queries * length))
        for first in range(0, images, step):
            some = slice(first, first + step)
            kept[some] = torch.softmax(self.logits(some, heads, tokens), dim=-1)
        return kept

    def logits(
        self, images: slice, heads: Sequence[int], tokens: Tensor | None, first_key: int = 0
    ) -> Tensor:
        """What the softmax reads, of keys from `first_key` on: (b, h, Q, S), float32."""
        module, length = self.module, self.qkv.shape[1]
        q, k = self.part(0)[images], self.part(1)[images, :, first_key:]
        if list(heads) != list(range(module.heads)):
            q, k = q[:, list(heads)], k[:, list(heads)]
        if tokens is not None:
            q = q[:, :, tokens]
        q = q.float() * q.shape[-1] ** -0.5
        logits = q @ k.float().transpose(-2, -1)
        if isinstance(module, t2t.Attention):
            return logits
        if module.relative_embedding is None and module.pattern.kind == "global":
            return logits
        rows = torch.arange(length, device=q.device)
        keys = rows[first_key:]
        rows = (rows if tokens is None else rows[tokens])[:, None]
        if module.relative_embedding is not None:
            return logits + relative_rows(module, module.relative_embedding, q, heads, rows, keys)
        allowed = may_attend(module.pattern, module.grid, module.prefix, rows, keys)
        return logits.masked_fill(~allowed, -torch.inf)


def relative_rows(
    module: Attention, embedding: Tensor, q: Tensor, heads: Sequence[int], rows: Tensor,
    keys: Tensor,
) -> Tensor:  # fmt: skip
    """`Attention.relative_logits` of some rows: q (b, h, Q, d), scaled -> (b, h, Q, S)."""
    by_head = embedding.float().unflatten(-1, (module.heads, -1)).permute(1, 2, 0)[list(heads)]
    by_offset = q @ by_head  # (b, h, Q, 2 T - 1); number o is the offset T - 1 - o
    places = (len(embedding) - 1) // 2 - rows + keys  # (Q, S)
    return by_offset.gather(-1, places.expand(*q.shape[:2], -1, -1))


@contextmanager
def watched(
    net: AttentiveNet, layers: Sequence[int], look: Callable[[Reading], None]
) -> Iterator[None]:
    """Inside, `look` is given each chosen layer's Reading as a pass of the net comes by it."""
    modules = attentions_of(net)

    def hook(layer: int, projection: nn.Module, inputs: tuple, projected: Tensor) -> None:
        with torch.no_grad(), torch.autocast(projected.device.type, enabled=False):
            look(Reading(layer, modules[layer], projected.detach()))

    with ExitStack() as stack:
        for layer in layers:
            handle = modules[layer].qkv.register_forward_hook(partial(hook, layer))
            stack.callback(handle.remove)
        yield


@torch.inference_mode()
def pool_attention(net: Net, images: Tensor) -> Tensor | None:
    """Where the probe of pooling "map" looks: (B, h, N), float32, on the CPU; None without one."""
    if not isinstance(net, VisionTransformer) or net.pool is None:
        return None
    pool = net.pool
    with evaluating(net):
        x = net.encode(images.to(device_of(net)))
    patches = (x if net.config.norm_after_pool else net.norm(x))[:, net.config.prefix :]
    k = pool.kv(patches).float().unflatten(-1, (2, pool.heads, -1))[:, :, 0]  # (B, N, h, d)
    q = pool.q(pool.probe).float().unflatten(-1, (pool.heads, -1))[0, 0]  # (h, d)
    return torch.softmax(torch.einsum("hd,bnhd->bhn", q * q.shape[-1] ** -0.5, k), dim=-1).cpu()


def token_names(net: Net) -> tuple[str, ...]:
    """The names of the tokens that stand before the patches, in their order.

    "class token", "distillation token", "register 1", ...; UsageError for a net without tokens.
    """
    if isinstance(attentive(net), T2TViT):
        return ("class token",)
    config = cast(VisionTransformer, net).config
    names = ["class token"] * config.has_class_token
    names += ["distillation token"] * config.distillation_token
    return (*names, *(f"register {number + 1}" for number in range(config.registers)))


def read_by_head(net: Net) -> Tensor:
    """The share that each token has in what the head reads: (T,), their sum is 1.

    With pooling "map" all patches alike, as each image's own shares are `pool_attention`.
    """
    names = token_names(net)
    rows, columns = attentive(net).config.grid
    pooling = net.config.pooling if isinstance(net, VisionTransformer) else "token"
    shares = torch.zeros(len(names) + rows * columns)
    if "distillation token" in names:
        shares[:2] = 1 / 2
    elif pooling == "token":
        shares[0] = 1
    else:
        shares[len(names) :] = 1 / (rows * columns)
    if pooling == "token+mean":
        shares /= 2
        shares[0] = 1 / 2
    return shares


def patch_token(net: Net, row: int, column: int) -> int:
    """The number of the token of a patch, counted from 0 at the top left."""
    prefix, (rows, columns) = len(token_names(net)), attentive(net).config.grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise UsageError(
            f"there is no patch {row},{column}: the rows of this net's grid are 0 to {rows - 1}, "
            f"its columns 0 to {columns - 1}"
        )
    return prefix + row * columns + column


def notes_on_attention(net: Net) -> tuple[str, ...]:
    """Sentences on what the attention of this net does not tell."""
    notes = []
    if isinstance(net, T2TViT):
        notes.append(
            "The layers are those of the backbone; the two layers that merge tokens before it are "
            "left out."
        )
    if isinstance(net, VisionTransformer) and net.config.pooling == "map":
        notes.append("The head reads what a learned probe gathers, whose attention is apart.")
    if isinstance(net, VisionTransformer) and set(net.config.attention) != {"global"}:
        notes.append("Attention is restricted to groups of patches; all else is 0 by construction.")
    return tuple(notes)


# What was asked for, checked


def attentive(net: Net) -> AttentiveNet:
    """The net itself; UsageError where it has no attention among tokens."""
    if isinstance(net, AttentiveNet):
        return net
    kind = kind_of(net.config)
    if kind == "AxialResNet":
        raise UsageError(
            "an AxialResNet attends along the rows and columns of feature maps of several sizes, "
            "not among tokens, so it has no maps of one shape; filters and Grad-CAM apply"
        )
    raise UsageError(f"a net of kind {kind} has no attention; filters and Grad-CAM apply")


def attentions_of(net: AttentiveNet) -> list[AttentionLayer]:
    """The attention of each block, the first one first."""
    return [cast(AttentionLayer, block.attention) for block in net.blocks]


def numbers_of(what: str, chosen: Sequence[int] | None, count: int) -> list[int]:
    """Which of `count` layers, heads or tokens are meant, from 0 on; UsageError for others."""
    wanted = range(count) if chosen is None else chosen
    for number in wanted:
        if not -count <= number < count:
            raise UsageError(
                f"there is no {what} {number}: this net has {count}, 0 to {count - 1}, or -1 to "
                f"{-count} from the end"
            )
    if not len(wanted):
        raise UsageError(f"no {what} is chosen; name one of 0 to {count - 1}")
    return list(dict.fromkeys(number % count for number in wanted))


def tokens_of(net: Net, queries: Queries) -> Tensor | None:
    """The numbers of the query tokens (Q,); None for all."""
    if queries is None:
        return None
    names = token_names(net)
    if isinstance(queries, str):
        if queries != "class":
            raise UsageError(f"queries {queries!r} is not known; give 'class' or numbers of tokens")
        if "class token" not in names:
            raise UsageError(
                "this net has no class token: it reads the mean of its patches; give numbers of "
                "tokens as queries, or None for all and take their mean"
            )
        queries = 0
    rows, columns = attentive(net).config.grid
    numbers = [queries] if isinstance(queries, int) else queries
    return torch.tensor(numbers_of("token", numbers, len(names) + rows * columns))
