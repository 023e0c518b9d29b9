"""The Vision Transformer as properties: equations 1 to 4 and the authors' models_vit.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.vit import Mlp, VisionTransformer, ViTConfig

PATCH, WIDTH, MLP, DEPTH = 8, 24, 40, 3


def small_net(**options) -> VisionTransformer:
    """A float64 net in eval mode, no parameter of which is zero: nothing can hide."""
    options = {"image_size": (32, 32), "classes": 5} | options
    net = VisionTransformer(ViTConfig(PATCH, WIDTH, DEPTH, 3, MLP, **options)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def random_images(*size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *(size or (32, 32)), dtype=torch.float64) * 2 - 1


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, c, h * p1, w * p2) -> (B, h * w, p1 * p2 * c): the rows x of Eq. 1."""
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def shuffle_patches(images: Tensor, order: Tensor) -> Tensor:
    """The same images with their patches in another order."""
    columns = F.unfold(images, PATCH, stride=PATCH)[:, :, order]  # (B, c * p1 * p2, N)
    return F.fold(columns, images.shape[-2:], PATCH, stride=PATCH)


# Embedding: Eq. 1


@given(
    patch=st.integers(1, 6), rows=st.integers(1, 4), columns=st.integers(1, 4),
    width=st.integers(1, 9), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_the_patch_embedding_is_a_linear_layer_on_flattened_patches(
    patch, rows, columns, width, seed
):
    torch.manual_seed(seed)
    size = (rows * patch, columns * patch)
    net = VisionTransformer(ViTConfig(patch, width, 1, 1, 1, image_size=size)).double()
    nn.init.zeros_(net.position_embedding)
    nn.init.normal_(net.patch_embedding.bias)
    images = random_images(*size)
    kernel = net.patch_embedding.weight.permute(0, 2, 3, 1).flatten(1)  # (D, p1 * p2 * c)
    expected = F.linear(patchify(images, patch), kernel, net.patch_embedding.bias)
    torch.testing.assert_close(net.embed(images)[:, 1:], expected)


def test_the_class_token_comes_first_and_has_a_position_of_its_own():
    net = small_net()
    first = net.embed(random_images())[:, 0]
    expected = net.class_token[0] + net.position_embedding[:, 0]
    torch.testing.assert_close(first, expected.expand(2, -1))


@pytest.mark.parametrize("row, column", [(0, 0), (0, 5), (2, 1), (3, 5)])
def test_patches_of_a_rectangular_image_are_read_row_by_row(row, column):
    net = small_net(image_size=(32, 48))
    images = random_images(32, 48)
    changed = images.clone()
    changed[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 1
    difference = (net.embed(changed) - net.embed(images)).abs().sum(dim=(0, 2))
    assert difference.nonzero().flatten().tolist() == [1 + row * 6 + column]


def test_a_rectangular_net_has_a_token_and_a_position_for_each_of_its_patches():
    net = small_net(image_size=(32, 48))
    assert net.config.grid == (4, 6)
    assert net.config.tokens == net.position_embedding.shape[1] == 25
    assert net.tokens(random_images(32, 48)).shape == (2, 25, WIDTH)
    assert net(random_images(32, 48)).shape == (2, 5)


# Order: positions are all that tells one patch from another


def test_without_positions_the_logits_do_not_depend_on_the_order_of_the_patches():
    net, images, order = small_net(), random_images(), torch.randperm(16)
    nn.init.zeros_(net.position_embedding)
    torch.testing.assert_close(net(shuffle_patches(images, order)), net(images))


def test_without_positions_the_tokens_follow_their_patches():
    net, images, order = small_net(), random_images(), torch.randperm(16)
    nn.init.zeros_(net.position_embedding)
    shuffled = net.tokens(shuffle_patches(images, order))
    torch.testing.assert_close(shuffled[:, 1:], net.tokens(images)[:, 1:][:, order])


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_with_positions_the_logits_depend_on_the_order_of_the_patches(pooling):
    net, images = small_net(pooling=pooling), random_images()
    shuffled = net(shuffle_patches(images, torch.arange(16).flip(0)))
    assert (shuffled - net(images)).abs().max() > 1e-3


def test_the_logits_of_an_image_do_not_depend_on_the_rest_of_the_batch():
    net, images = small_net(), random_images(batch=3)
    torch.testing.assert_close(net(images)[:1], net(images[:1]))


def test_an_empty_batch_has_no_logits():
    assert small_net()(random_images(batch=0)).shape == (0, 5)


# Pooling and heads: Eq. 4


def test_token_pooling_reads_the_class_token_after_the_final_norm():
    net, images = small_net(), random_images()
    torch.testing.assert_close(net.features(images), net.tokens(images)[:, 0])


def test_mean_pooling_has_no_class_token_and_averages_after_the_final_norm():
    net, images = small_net(pooling="mean"), random_images()
    assert net.class_token is None
    assert net.position_embedding.shape[1] == 16
    assert net.tokens(images).shape == (2, 16, WIDTH)
    torch.testing.assert_close(net.features(images), net.tokens(images).mean(dim=1))


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_the_hidden_head_is_the_tanh_of_one_layer_as_wide_as_the_net(pooling):
    net, images = small_net(pooling=pooling, hidden_head=True), random_images()
    tokens = net.tokens(images)
    pooled = tokens[:, 0] if pooling == "token" else tokens.mean(dim=1)
    assert net.hidden.weight.shape == (WIDTH, WIDTH)
    expected = torch.tanh(pooled @ net.hidden.weight.T + net.hidden.bias)
    torch.testing.assert_close(net.features(images), expected)


@pytest.mark.parametrize("hidden_head", [False, True])
def test_the_head_is_one_linear_layer_on_the_features(hidden_head):
    net, images = small_net(hidden_head=hidden_head), random_images()
    expected = net.features(images) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(images), expected)


@pytest.mark.parametrize("bias", [0.0, -10.0])
def test_every_logit_of_a_new_net_is_exactly_the_head_bias(bias):
    config = ViTConfig(PATCH, WIDTH, DEPTH, 3, MLP, image_size=(32, 32), head_bias=bias)
    logits = VisionTransformer(config)(torch.randn(2, 3, 32, 32))
    assert torch.equal(logits, torch.full((2, 1000), bias))


def test_a_reset_head_is_zero_for_its_new_classes_and_leaves_the_features_alone():
    net, images = small_net(), random_images()
    before = net.features(images)
    net.reset_head(7, bias=-2.0)
    assert torch.equal(net(images), torch.full((2, 7), -2.0, dtype=torch.float64))
    assert torch.equal(net.features(images), before)
    assert (net.config.classes, net.config.head_bias) == (7, -2.0)


# Tokens, for use as a backbone


def test_tokens_are_the_output_of_the_last_block_after_the_final_norm():
    net, images = small_net(), random_images()
    x = net.embed(images)
    for block in net.blocks:
        x = block(x)
    torch.testing.assert_close(net.tokens(images), F.layer_norm(
        x, (WIDTH,), net.norm.weight, net.norm.bias, eps=1e-6
    ))  # fmt: skip


def test_tokens_of_named_layers_come_in_the_order_asked_for_each_after_the_final_norm():
    net, images = small_net(), random_images()
    first = net.blocks[0](net.embed(images))
    second = net.blocks[1](first)
    middle, last, earliest = net.tokens(images, layers=[1, -1, 0])
    torch.testing.assert_close(last, net.tokens(images))
    torch.testing.assert_close(middle, net.norm(second))
    torch.testing.assert_close(earliest, net.norm(first))


# Norms and activations


def test_there_are_two_norms_to_a_block_and_one_at_the_end_all_with_the_authors_epsilon():
    norms = [module for module in small_net().modules() if isinstance(module, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-6] * (2 * DEPTH + 1)


def test_another_norm_epsilon_reaches_every_norm():
    net = small_net(norm_eps=1e-3)
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-3] * (2 * DEPTH + 1)


def gelu_of_the_mlp(kind: str, x: Tensor) -> Tensor:
    """The activation alone: an MLP whose two layers are the identity."""
    mlp = Mlp(ViTConfig(1, 1, 1, 1, 1, image_size=(1, 1), gelu=kind)).double()
    for dense in (mlp.dense1, mlp.dense2):
        nn.init.ones_(dense.weight)
        nn.init.zeros_(dense.bias)
    return mlp(x[:, None])[:, 0]


def test_gelu_is_the_tanh_approximation_unless_the_exact_one_is_asked_for():
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    erf = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    torch.testing.assert_close(gelu_of_the_mlp("tanh", x), tanh)
    torch.testing.assert_close(gelu_of_the_mlp("erf", x), erf)
    assert ViTConfig(1, 1, 1, 1, 1).gelu == "tanh"


def test_the_two_gelus_differ_by_less_than_five_ten_thousandths():
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    difference = (gelu_of_the_mlp("tanh", x) - gelu_of_the_mlp("erf", x)).abs().max()
    assert 4e-4 < difference < 5e-4


# Dropout: after every dense layer but q, k, v, and after the positions


def test_dropout_changes_training_outputs():
    net, images = small_net(dropout=0.1).train(), random_images()
    assert (net(images) - net(images)).abs().max() > 1e-3


def test_dropout_does_not_change_evaluation_outputs():
    net, images = small_net(dropout=0.1), random_images()
    same = small_net()
    same.load_state_dict(net.state_dict())
    assert torch.equal(net(images), same(images))


def test_dropout_follows_the_positions_the_attention_output_and_both_mlp_layers_only(monkeypatch):
    net, images, dropped = small_net(dropout=0.1), random_images(), []
    expected = net(images)
    monkeypatch.setattr(F, "dropout", lambda x, *_, **__: dropped.append(x) or x)
    logits = net.train()(images)
    tokens, hidden = (2, 17, WIDTH), (2, 17, MLP)
    assert [tuple(x.shape) for x in dropped] == [tokens] + DEPTH * [tokens, hidden, tokens]
    assert torch.equal(dropped[0], net.embed(images))
    assert all(x.min() > -0.171 for x in dropped[2::3]), "the MLP's is after its GELU"
    assert torch.equal(logits, expected), "nothing else is random, attention weights included"


def test_dropout_acts_inside_the_residual_branches(monkeypatch):
    net, x = small_net(dropout=0.1).train(), torch.randn(2, 17, WIDTH, dtype=torch.float64)
    monkeypatch.setattr(F, "dropout", lambda x, *_, **__: torch.zeros_like(x))
    assert torch.equal(net.blocks[0](x), x)


# Stochastic depth: what is drawn is tested in test_stochastic_depth.py


def test_stochastic_depth_grows_from_nothing_at_the_first_block_in_vits_and_hybrids():
    net = small_net(stochastic_depth=0.4)
    assert [block.stochastic_depth for block in net.blocks] == pytest.approx([0, 0.2, 0.4])
    hybrid = small_net(stochastic_depth=0.4, stem=(1,), image_size=(64, 64))
    assert [block.stochastic_depth for block in hybrid.blocks] == pytest.approx([0, 0.2, 0.4])


def test_each_branch_of_a_block_is_left_out_for_images_of_its_own():
    torch.manual_seed(0)
    block = small_net(stochastic_depth=0.4).blocks[-1].train()
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64).expand(600, -1, -1)
    attention = block.attention(block.norm1(x[:1]))
    with_both = x[:1] + attention / 0.6
    mlp_after = block.mlp(block.norm2(with_both)) / 0.6
    mlp_alone = block.mlp(block.norm2(x[:1])) / 0.6
    found, counts = block(x), []
    for expected in (x[:1], with_both, x[:1] + mlp_alone, with_both + mlp_after):
        counts.append((found - expected).abs().amax(dim=(1, 2)).lt(1e-9).double().mean().item())
    assert sum(counts) == pytest.approx(1)
    assert counts == pytest.approx([0.16, 0.24, 0.24, 0.36], abs=0.05)


def test_stochastic_depth_of_nothing_and_outside_training_leaves_every_bit_and_every_draw():
    plain, images = small_net(dropout=0.1), random_images()
    for rate, training in ((0.0, True), (0.3, False)):
        other = small_net(dropout=0.1, stochastic_depth=rate).train(training)
        other.load_state_dict(plain.state_dict())
        outputs = []
        for net in (plain.train(training), other):
            torch.manual_seed(0)
            outputs.append((net(images), torch.rand(1)))
        assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))


# Initial values, as the authors' code draws them


@pytest.fixture(scope="module")
def new_net() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        ViTConfig(8, 192, 2, 3, 768, image_size=(96, 96), hidden_head=True)
    ).requires_grad_(False)


def assert_xavier_uniform(weight: Tensor) -> None:
    bound = math.sqrt(6 / sum(weight.shape))
    assert 0.995 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def assert_lecun_normal(weight: Tensor) -> None:
    std = math.sqrt(1 / weight[0].numel())
    bound = 2 * std / 0.87962566103423978
    assert 0.98 * bound < weight.abs().max() <= bound * (1 + 1e-6)
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert weight.mean().abs() < 0.02 * std


@pytest.mark.parametrize("part", [0, 1, 2], ids=["q", "k", "v"])
def test_q_k_and_v_are_each_xavier_uniform_as_a_square_matrix_of_their_own(new_net, part):
    for block in new_net.blocks:
        weight = block.attention.qkv.weight[192 * part : 192 * (part + 1)]
        assert weight.shape == (192, 192)
        assert_xavier_uniform(weight)


def test_the_attention_output_and_the_mlp_are_xavier_uniform(new_net):
    for block in new_net.blocks:
        for dense in (block.attention.out, block.mlp.dense1, block.mlp.dense2):
            assert_xavier_uniform(dense.weight)


def test_the_patch_embedding_and_the_hidden_head_are_lecun_normal_cut_at_two_deviations(new_net):
    assert_lecun_normal(new_net.patch_embedding.weight)
    assert_lecun_normal(new_net.hidden.weight)


def test_positions_are_normal_with_deviation_two_hundredths(new_net):
    positions = new_net.position_embedding
    assert positions.std().item() == pytest.approx(0.02, rel=0.02)
    assert positions.mean().abs() < 1e-3
    assert positions.abs().max() > 0.06, "not truncated"


def test_mlp_biases_are_normal_and_tiny(new_net):
    for block in new_net.blocks:
        bias = torch.cat([block.mlp.dense1.bias, block.mlp.dense2.bias])
        assert bias.std().item() == pytest.approx(1e-6, rel=0.1)


def test_the_class_token_and_all_other_biases_start_at_zero(new_net):
    start_at_zero = [new_net.class_token, new_net.patch_embedding.bias, new_net.hidden.bias]
    start_at_zero += [new_net.head.weight, new_net.head.bias]
    for block in new_net.blocks:
        start_at_zero += [block.attention.qkv.bias, block.attention.out.bias]
    assert all(torch.count_nonzero(parameter) == 0 for parameter in start_at_zero)


# Words that are wrong


@pytest.mark.parametrize("height, width", [(32, 32), (48, 32), (24, 48)])
def test_images_of_another_size_are_refused_by_an_error_that_names_both_sizes(height, width):
    with pytest.raises(ValueError, match=rf"\b{height}x{width}\b.*\b32x48\b"):
        small_net(image_size=(32, 48))(random_images(height, width))


@pytest.mark.parametrize("size, near", [((30, 32), "32x32"), ((32, 50), "32x48"), ((1, 8), "8x8")])
def test_sizes_that_patches_do_not_divide_are_refused_with_the_nearest_that_they_do(size, near):
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]}.*patch size 8.*\b{near}\b"):
        ViTConfig(8, WIDTH, DEPTH, 3, MLP, image_size=size)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heads": 5}, "5 heads .* width 24"),
        ({"depth": 0}, "depth is 0"),
        ({"classes": -1}, "classes is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"stochastic_depth": -0.1}, "stochastic_depth is -0.1"),
        ({"pooling": "max"}, "'max' .* 'token' or 'mean' or 'map'"),
        ({"gelu": "relu"}, "'relu' .* 'tanh' or 'erf'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(options, words):
    fields = {"patch": 8, "width": WIDTH, "depth": 1, "heads": 3, "mlp_width": MLP} | options
    with pytest.raises(ValueError, match=words):
        ViTConfig(**fields)
