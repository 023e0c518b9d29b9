"""What a Vision Transformer can have beyond the paper's own: positions, pooling, further tokens."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.nets import resize_net
from vitkit.models.positions import sincos_2d
from vitkit.models.vit import AttentionPool, Mlp, VisionTransformer
from vitkit.models.vit_config import ViTConfig

PATCH, WIDTH, HEADS, MLP, DEPTH = 8, 24, 3, 40, 6
SIZE = (32, 48)  # 4 x 6 patches


def small_net(**options) -> VisionTransformer:
    """A float64 net in eval mode, no parameter of which is zero: nothing can hide."""
    options = {"image_size": SIZE, "classes": 5} | options
    net = VisionTransformer(ViTConfig(PATCH, WIDTH, DEPTH, HEADS, MLP, **options)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def images(batch: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(batch, 3, *size, dtype=torch.float64) * 2 - 1


def embedded(net: VisionTransformer, x: Tensor) -> Tensor:
    """Patch embeddings and nothing else: (B, N, D)."""
    return net.patch_embedding(x).flatten(2).transpose(1, 2)


# Positions (appendix D.4)


def test_without_positions_the_order_of_the_patches_does_not_matter():
    net, x = small_net(positions="none"), images()
    columns = F.unfold(x, PATCH, stride=PATCH)[:, :, torch.randperm(24)]
    shuffled = F.fold(columns, SIZE, PATCH, stride=PATCH)
    torch.testing.assert_close(net(shuffled), net(x))
    with_positions = small_net()
    assert (with_positions(shuffled) - with_positions(x)).abs().max() > 1e-3


def test_2d_positions_are_the_row_and_the_column_embedding_side_by_side():
    net, x = small_net(positions="2d"), images()
    added = net.embed(x)[:, 1:] - embedded(net, x)
    for row, column in ((0, 0), (3, 1), (2, 5)):
        expected = torch.cat([net.row_embedding[0, row], net.column_embedding[0, column]])
        torch.testing.assert_close(added[0, row * 6 + column], expected)
    torch.testing.assert_close(net.embed(x)[:, :1], net.class_token.expand(2, -1, -1))


def test_sincos_positions_are_those_of_big_vision():
    """posemb_sincos_2d: sin x, cos x, sin y, cos y, frequencies 10000^-(i / (D / 4 - 1))."""
    table = sincos_2d((4, 6), WIDTH, prefix=1)
    assert table.shape == (1, 25, WIDTH)
    assert not table[0, 0].any()
    for y, x, i in ((0, 0, 0), (1, 2, 0), (3, 5, 3), (2, 4, 5)):
        frequency = 10_000 ** (-i / 5)
        parts = table[0, 1 + y * 6 + x].view(4, 6)[:, i]
        expected = [f(place * frequency) for place in (x, y) for f in (math.sin, math.cos)]
        torch.testing.assert_close(parts, torch.tensor(expected), atol=1e-5, rtol=0)


def test_sincos_positions_are_kept_with_the_weights_and_not_trained():
    net = small_net(positions="sincos2d")
    assert "position_embedding" in net.state_dict()
    assert "position_embedding" not in dict(net.named_parameters())
    x = images()
    added = net.embed(x)[:, 1:] - embedded(net, x)
    torch.testing.assert_close(added[:1], sincos_2d((4, 6), WIDTH).double())


def test_relative_positions_add_the_query_times_the_embedding_of_the_offset():
    """q_i . r_(i - j), scaled as q_i . k_j is, before the softmax; written out pair by pair."""
    net = small_net(positions="relative")
    attention, x = net.blocks[0].attention, torch.randn(2, 25, WIDTH, dtype=torch.float64)
    q, k, v = attention.project(x)
    table = attention.relative_embedding.view(49, HEADS, 8)
    logits = torch.empty(2, HEADS, 25, 25, dtype=torch.float64)
    for i in range(25):
        for j in range(25):
            keys = k[:, :, j] + table[24 - (i - j)]
            logits[:, :, i, j] = (q[:, :, i] * keys).sum(-1) / math.sqrt(8)
    expected = attention.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected)
    assert net.position_embedding is None


def test_a_single_token_has_one_relative_offset():
    net = small_net(positions="relative", pooling="mean", image_size=(8, 8))
    assert net.blocks[0].attention.relative_embedding.shape == (1, WIDTH)
    assert net(images(size=(8, 8))).isfinite().all()


@pytest.mark.parametrize("positions", ["1d", "2d", "sincos2d"])
def test_positions_at_every_layer_are_added_to_the_input_of_every_block_and_not_at_the_stem(
    positions,
):
    shared = small_net(positions=positions, positions_at="layers-shared")
    x = images()
    torch.testing.assert_close(shared.embed(x)[:, 1:], embedded(shared, x))
    h = shared.embed(x)
    for block in shared.blocks:
        h = block(h + shared.positions()[0])
    torch.testing.assert_close(shared.encode(x), h)


@pytest.mark.parametrize("positions", ["1d", "2d"])
def test_positions_of_every_layer_can_be_its_own(positions):
    net, x = small_net(positions=positions, positions_at="layers"), images()
    assert net.positions().shape == (DEPTH, 25, WIDTH)
    h = net.embed(x)
    for layer, block in enumerate(net.blocks):
        h = block(h + net.positions()[layer])
    torch.testing.assert_close(net.encode(x), h)
    assert (net.positions()[0] - net.positions()[1]).abs().max() > 0.01


@pytest.mark.parametrize("positions", ["1d", "2d", "relative", "sincos2d", "none"])
@torch.no_grad()
def test_every_kind_of_positions_can_be_resized(positions):
    net = small_net(positions=positions)
    resized = resize_net(net, (64, 48))
    assert resized.config.grid == (8, 6)
    assert resized(images(size=(64, 48))).isfinite().all()
    same = resize_net(net, SIZE)
    torch.testing.assert_close(same(x := images()), net(x))
    if positions in ("sincos2d", "none"):  # nothing learned is lost on the way there and back
        torch.testing.assert_close(resize_net(resized, SIZE)(x), net(x))
    if positions == "relative":  # the middle is offset 0, the ends the farthest tokens
        old, new = (n.blocks[0].attention.relative_embedding for n in (net, resized))
        torch.testing.assert_close(new[[0, 48, 96]], old[[0, 24, 48]])
    if positions == "2d":
        torch.testing.assert_close(resized.row_embedding[:, [0, -1]], net.row_embedding[:, [0, -1]])
        torch.testing.assert_close(resized.column_embedding, net.column_embedding)
    if positions == "sincos2d":
        torch.testing.assert_close(
            resized.position_embedding, sincos_2d((8, 6), WIDTH, prefix=1).double()
        )


@torch.no_grad()
def test_positions_of_every_layer_are_resized_each():
    net = small_net(positions_at="layers")
    resized = resize_net(net, (64, 48))
    assert resized.position_embedding.shape == (DEPTH, 49, WIDTH)
    torch.testing.assert_close(resized.position_embedding[:, 0], net.position_embedding[:, 0])
    torch.testing.assert_close(resized.position_embedding[:, 1], net.position_embedding[:, 1])


# Pooling


def test_attention_pooling_is_multi_head_attention_of_one_learned_query_then_an_mlp():
    """big_vision's MAPHead, beside torch's own multi-head attention with the same weights."""
    pool = small_net(pooling="map").pool
    assert isinstance(pool, AttentionPool)
    x = torch.randn(2, 24, WIDTH, dtype=torch.float64)
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([pool.q.weight, pool.kv.weight]))
        attention.in_proj_bias.copy_(torch.cat([pool.q.bias, pool.kv.bias]))
        attention.out_proj.load_state_dict(pool.out.state_dict())
    mixed = attention(pool.probe.expand(2, -1, -1), x, x)[0]
    torch.testing.assert_close(pool(x), (mixed + pool.mlp(pool.norm(mixed)))[:, 0])


def test_map_pooling_reads_the_normed_patches_without_a_class_token():
    net, x = small_net(pooling="map"), images()
    assert net.class_token is None
    torch.testing.assert_close(net.features(x), net.pool(net.norm(net.encode(x))))


def test_patch_mean_keeps_the_class_token_and_leaves_it_out_of_the_mean():
    net, x = small_net(pooling="patch-mean", registers=2), images()
    tokens = net.tokens(x)
    assert tokens.shape == (2, 1 + 2 + 24, WIDTH)
    torch.testing.assert_close(net.features(x), tokens[:, 3:].mean(1))


def test_token_and_mean_are_read_side_by_side():
    net, x = small_net(pooling="token+mean"), images()
    tokens = net.tokens(x)
    torch.testing.assert_close(net.features(x), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    assert net.head.weight.shape == (5, 2 * WIDTH)


def test_the_norm_can_come_after_the_pool():
    net, x = small_net(pooling="patch-mean", norm_after_pool=True), images()
    torch.testing.assert_close(net.features(x), net.norm(net.encode(x)[:, 1:].mean(1)))
    torch.testing.assert_close(net.tokens(x), net.encode(x))
    before = small_net(pooling="patch-mean")
    before.load_state_dict(net.state_dict())
    assert (before(x) - net(x)).abs().max() > 1e-3


# Further tokens and layers


def test_a_distillation_token_has_its_own_head_and_the_two_are_averaged():
    net, x = small_net(distillation_token=True), images()
    tokens = net.tokens(x)
    expected = (net.head(tokens[:, 0]) + net.head_distillation(tokens[:, 1])) / 2
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net.features(x), tokens[:, :2].mean(1))


def test_registers_come_after_the_class_token_and_have_no_position():
    net, x = small_net(registers=2), images()
    embedded_tokens = net.embed(x)
    torch.testing.assert_close(embedded_tokens[:, 1:3], net.registers.expand(2, -1, -1))
    assert net.position_embedding.shape == (1, 25, WIDTH)
    first = net.class_token + net.position_embedding[:, :1]
    torch.testing.assert_close(embedded_tokens[:, :1], first.expand(2, -1, -1))


def test_new_registers_differ_from_each_other():
    registers = VisionTransformer(ViTConfig(8, 24, 1, 3, 40, registers=2)).registers
    assert (registers[0, 0] - registers[0, 1]).abs().max() > 1e-3


def test_layer_scale_multiplies_each_branch():
    net = small_net(layer_scale=0.5)
    block, x = net.blocks[0], torch.randn(2, 25, WIDTH, dtype=torch.float64)
    h = x + block.scale1 * block.attention(block.norm1(x))
    torch.testing.assert_close(block(x), h + block.scale2 * block.mlp(block.norm2(h)))
    fresh = VisionTransformer(ViTConfig(8, 24, 1, 3, 40, layer_scale=0.25))
    assert (fresh.blocks[0].scale1 == 0.25).all()


def test_swiglu_gates_one_half_by_the_silu_of_the_other():
    mlp = small_net(mlp="swiglu").blocks[0].mlp
    assert isinstance(mlp, Mlp)
    assert mlp.dense1.weight.shape == (2 * MLP, WIDTH)
    x = torch.randn(7, WIDTH, dtype=torch.float64)
    gate, value = (F.linear(x, w, b) for w, b in zip(
        mlp.dense1.weight.chunk(2), mlp.dense1.bias.chunk(2), strict=True))  # fmt: skip
    torch.testing.assert_close(mlp(x), mlp.dense2(gate * torch.sigmoid(gate) * value))


def test_a_net_of_no_classes_has_no_head_and_gives_its_features():
    net, x = small_net(classes=0), images()
    torch.testing.assert_close(net(x), net.features(x))
    assert not any(name.startswith("head") for name in net.state_dict())
    net.reset_head(4)
    assert net.double()(x).shape == (2, 4)


# Restricted attention (appendix D.6)


def test_axial_attention_alternates_rows_and_columns():
    net = small_net(attention=("row", "column"), pooling="mean")
    reference, x = small_net(pooling="mean"), images()
    reference.load_state_dict(net.state_dict())
    h = reference.embed(x)
    for layer, block in enumerate(reference.blocks):
        # Rows are 6 patches long, columns 4: dense attention on each line by itself.
        lines = h.unflatten(1, (4, 6))
        lines = lines if layer % 2 == 0 else lines.transpose(1, 2)
        one, other = lines.shape[1:3]
        mixed = block(lines.reshape(2 * one, other, WIDTH)).view(2, one, other, WIDTH)
        h = (mixed if layer % 2 == 0 else mixed.transpose(1, 2)).flatten(1, 2)
    torch.testing.assert_close(net.encode(x), h)


def test_windows_may_differ_by_layer():
    net = small_net(attention=("window:2", "window:4x3", "global"))
    patterns = [str(block.attention.pattern) for block in net.blocks]
    assert patterns == ["window:2", "window:4x3", "global"] * 2
    assert net(images()).isfinite().all()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"attention": ("window:5",)}, "window:5"),
        ({"attention": ("row",) * 4}, "4 patterns, .* depth 6"),
        ({"attention": ()}, "no pattern"),
        ({"attention": ("row",), "positions": "relative"}, "relative .* 'row'"),
        ({"positions": "none", "positions_at": "layers"}, "'none' are not added"),
        ({"positions_at": "layers", "registers": 1}, "registers"),
        ({"positions": "sincos2d", "positions_at": "layers"}, "fixed, the same for every layer"),
        ({"stem": (1,), "stem_width": 48, "patch": 4}, "stem_width is 48"),
        ({"image_size": (32,)}, "a height and a width"),
        ({"image_size": (32.0, 32.0)}, "a height and a width"),
        ({"distillation_token": True, "pooling": "mean"}, "distillation token"),
        ({"pooling": "token+mean", "hidden_head": True}, "hidden head"),
        ({"pooling": "token+mean", "norm_after_pool": True}, "norm before the pool"),
        ({"positions": "3d"}, "'3d' .* '1d' or '2d'"),
        ({"mlp": "relu"}, "'relu'"),
        ({"registers": -1}, "registers is -1"),
        ({"layer_scale": math.nan}, "layer_scale"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_a_sentence(options, words):
    fields = {"patch": PATCH, "image_size": SIZE} | options
    with pytest.raises(ValueError, match=words):
        ViTConfig(width=WIDTH, depth=DEPTH, heads=HEADS, mlp_width=MLP, **fields)


def test_one_pattern_may_be_given_without_a_tuple():
    options = {"image_size": SIZE, "attention": "window:2"}
    assert ViTConfig(PATCH, WIDTH, DEPTH, HEADS, MLP, **options).attention == ("window:2",)


def test_the_first_probe_is_drawn_as_flax_draws_it():
    probe = VisionTransformer(ViTConfig(8, 768, 1, 12, 64, pooling="map")).pool.probe
    bound = math.sqrt(6 / 769)
    assert 0.95 * bound < probe.abs().max() <= bound


def test_the_tokens_of_a_layer_need_no_later_layer():
    net, x = small_net(), images()
    first, last = net.tokens(x, layers=[0, -1])
    net.blocks[1] = None  # type: ignore[assignment]
    torch.testing.assert_close(net.tokens(x, layers=[0])[0], first)
    with pytest.raises(IndexError, match="0 to 5"):
        net.tokens(x, layers=[6])
    assert last.shape == first.shape


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "2d", "positions_at": "layers"},
        {"positions": "sincos2d", "pooling": "map"},
        {"positions": "relative", "registers": 2},
        {"distillation_token": True, "layer_scale": 0.1},
        {"pooling": "token+mean", "mlp": "swiglu", "registers": 3},
        {"attention": ("row", "column", "window:2")},
        {"stem": (1, 1), "stem_width": 32, "patch": 1, "image_size": (64, 96)},
    ],
    ids=str,
)
def test_every_option_learns(options):
    """A few steps on random images lower the loss, and every parameter gets a gradient."""
    torch.manual_seed(0)
    fields = {"patch": PATCH, "image_size": SIZE} | options
    net = VisionTransformer(
        ViTConfig(width=WIDTH, depth=DEPTH, heads=HEADS, mlp_width=MLP, classes=5, **fields)
    )
    x, y = torch.rand(8, 3, *net.config.image_size) * 2 - 1, torch.arange(8) % 5
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
