"""T2T-ViT as properties, and equal to the authors' own code: golden/t2t-performer, -transformer."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.t2t import (
    PerformerAttention,
    T2TConfig,
    T2TViT,
    TokenAttention,
    linear_attention,
    restructured,
    soft_split,
)

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ["performer", "transformer"]
WIDTH, DEPTH, HEADS, MLP, DIM = 24, 3, 2, 40, 6


def small_net(kind: str = "performer", **options) -> T2TViT:
    """A float64 net in eval mode, no parameter of which is zero: nothing can hide."""
    options = {"image_size": (32, 32), "classes": 5, "token_dim": DIM} | options
    net = T2TViT(T2TConfig(WIDTH, DEPTH, HEADS, MLP, kind, **options)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def random_images(*size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *(size or (32, 32)), dtype=torch.float64) * 2 - 1


# The authors' code and its published weights

# Our names and those of yitu-opensource/T2T-ViT, ".weight" and ".bias" left off; * is a number.
# Shapes are the same on both sides: nothing is transposed, split or joined.
NAMES = {
    "class_token": "cls_token",
    "position_embedding": "pos_embed",
    "tokens_to_token.layer*.norm1": "tokens_to_token.attention*.norm1",
    "tokens_to_token.layer*.norm2": "tokens_to_token.attention*.norm2",
    "tokens_to_token.projection": "tokens_to_token.project",
    "blocks.*.norm1": "blocks.*.norm1",
    "blocks.*.attention.qkv": "blocks.*.attn.qkv",
    "blocks.*.attention.out": "blocks.*.attn.proj",
    "blocks.*.norm2": "blocks.*.norm2",
    "blocks.*.mlp.dense1": "blocks.*.mlp.fc1",
    "blocks.*.mlp.dense2": "blocks.*.mlp.fc2",
    "norm": "norm",
    "head": "head",
}
NAMES_OF_KIND = {
    "performer": {
        "tokens_to_token.layer*.attention.random_features": "tokens_to_token.attention*.w",
        "tokens_to_token.layer*.attention.kqv": "tokens_to_token.attention*.kqv",
        "tokens_to_token.layer*.attention.out": "tokens_to_token.attention*.proj",
        "tokens_to_token.layer*.mlp.dense1": "tokens_to_token.attention*.mlp.0",
        "tokens_to_token.layer*.mlp.dense2": "tokens_to_token.attention*.mlp.2",
    },
    "transformer": {
        "tokens_to_token.layer*.attention.qkv": "tokens_to_token.attention*.attn.qkv",
        "tokens_to_token.layer*.attention.out": "tokens_to_token.attention*.attn.proj",
        "tokens_to_token.layer*.mlp.dense1": "tokens_to_token.attention*.mlp.fc1",
        "tokens_to_token.layer*.mlp.dense2": "tokens_to_token.attention*.mlp.fc2",
    },
}


def authors_name(name: str, kind: str) -> str:
    """The name in the authors' state of what is `name` in ours."""
    stem, leaf = re.fullmatch(r"(.*?)(\.weight|\.bias|)", name).groups()
    number = re.search(r"(?<=blocks\.)\d+|(?<=layer)\d+", stem)
    if number is None:
        return NAMES[stem] + leaf
    pattern = stem[: number.start()] + "*" + stem[number.end() :]
    return (NAMES | NAMES_OF_KIND[kind])[pattern].replace("*", number[0]) + leaf


def authors_net(kind: str) -> T2TViT:
    """The golden checkpoint in a net of ours; every name must be met, on both sides."""
    config = {
        "performer": T2TConfig(128, 1, 2, 128, "performer", 16, 7, (64, 64)),
        "transformer": T2TConfig(64, 3, 1, 128, "transformer", 16, 7, (64, 64)),
    }[kind]
    net = T2TViT(config).eval()
    weights = torch.load(GOLDEN / f"t2t-{kind}" / "checkpoint.pth", weights_only=True)
    state = {name: weights.pop(authors_name(name, kind)) for name in net.state_dict()}
    assert not weights, f"names of theirs that we have no place for: {sorted(weights)}"
    net.load_state_dict(state)
    return net


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_authors_weights_give_the_authors_features_and_logits(kind):
    net, arrays = authors_net(kind), np.load(GOLDEN / f"t2t-{kind}" / "io.npz")
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    for ours, expected in (
        (net.features(images), arrays["features"]),
        (net(images), arrays["logits"]),
    ):
        assert ours.shape == expected.shape
        assert np.abs(ours.numpy() - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_authors_stored_positions_are_those_we_compute(kind):
    net = authors_net(kind)
    torch.testing.assert_close(net.position_embedding, T2TViT(net.config).position_embedding)


# All nets of the README's tables: (width, depth, heads, mlp_width), then what the authors' code
# counts at 1000 classes and 224 x 224 with all fixed tensors, and with none.
PUBLISHED = {
    "T2T-ViT-7": ((256, 7, 4, 512, "performer"), 4_310_222, 4_255_694),
    "T2T-ViT-10": ((256, 10, 4, 512, "performer"), 5_889_230, 5_834_702),
    "T2T-ViT-12": ((256, 12, 4, 512, "performer"), 6_941_902, 6_887_374),
    "T2T-ViT-14": ((384, 14, 6, 1152, "performer"), 21_545_550, 21_465_806),
    "T2T-ViT-19": ((448, 19, 7, 1344, "performer"), 39_177_422, 39_085_070),
    "T2T-ViT-24": ((512, 24, 8, 1536, "performer"), 64_105_934, 64_000_974),
    "T2T-ViT_t-14": ((384, 14, 6, 1152, "transformer"), 21_541_070, 21_465_422),
    "T2T-ViT_t-19": ((448, 19, 7, 1344, "transformer"), 39_172_942, 39_084_686),
    "T2T-ViT_t-24": ((512, 24, 8, 1536, "transformer"), 64_101_454, 64_000_590),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_net_has_as_many_parameters_as_the_authors_code_counts(name):
    sizes, with_fixed, trained = PUBLISHED[name]
    with torch.device("meta"):
        net = T2TViT(T2TConfig(*sizes))
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"meta"}
    assert sum(tensor.numel() for tensor in net.state_dict().values()) == with_fixed
    assert sum(parameter.numel() for parameter in net.parameters()) == trained


# Soft split and re-structurisation: section 3.1


@pytest.mark.parametrize("kernel, stride, padding", [(7, 4, 2), (3, 2, 1)])
def test_a_soft_split_makes_a_token_of_each_overlapping_square_row_by_row(kernel, stride, padding):
    image = torch.randn(1, 2, 8, 12, dtype=torch.float64)
    padded = F.pad(image, [padding] * 4)
    expected = [
        padded[:, :, top : top + kernel, left : left + kernel].flatten(1)
        for top in range(0, 8, stride)
        for left in range(0, 12, stride)
    ]
    assert torch.equal(soft_split(image, kernel, stride), torch.stack(expected, dim=1))


def test_restructured_tokens_are_an_image_whose_pixels_are_the_tokens_row_by_row():
    tokens = torch.randn(2, 15, 4)
    image = restructured(tokens, 3, 5)
    assert image.shape == (2, 4, 3, 5)
    assert torch.equal(image[1, :, 2, 4], tokens[1, 14])
    assert torch.equal(image[0, :, 1, 0], tokens[0, 5])


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_shrink_by_four_two_and_two_and_a_rectangle_keeps_its_shape(kind):
    net, images, seen = small_net(kind, image_size=(32, 64)), random_images(32, 64), []
    for layer in (net.tokens_to_token.layer1, net.tokens_to_token.layer2):
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    tokens = net.tokens_to_token(images)
    (split1, layer1), (split2, layer2) = seen
    assert torch.equal(split1, soft_split(images, 7, 4))
    assert torch.equal(split2, soft_split(restructured(layer1, 8, 16), 3, 2))
    merged = soft_split(restructured(layer2, 4, 8), 3, 2)
    torch.testing.assert_close(tokens, net.tokens_to_token.projection(merged))
    assert tokens.shape == (2, 2 * 4, WIDTH)
    assert (net.config.grid, net.config.tokens) == ((2, 4), 9)
    assert net(images).shape == (2, 5)


def test_the_token_transformer_is_attention_of_one_head_scaled_by_the_width_it_reads():
    attention = TokenAttention(20, DIM).double()
    x = torch.randn(2, 9, 20, dtype=torch.float64) * 3
    q, k, v = (x @ part.T for part in attention.qkv.weight.chunk(3))
    weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(20), dim=-1)
    mixed, values = attention(x)
    torch.testing.assert_close(mixed, attention.out(weights @ v))
    torch.testing.assert_close(values, v)
    assert attention.qkv.bias is None


def test_the_performer_weighs_values_by_products_of_positive_random_features():
    k, q, v = torch.randn(3, 2, 9, DIM, dtype=torch.float64).unbind(0)
    weight = torch.randn(DIM // 2, DIM, dtype=torch.float64)

    def features(x: Tensor) -> Tensor:
        return torch.exp(x @ weight.T - (x**2).sum(-1, keepdim=True) / 2) / math.sqrt(DIM // 2)

    products = features(q) @ features(k).transpose(1, 2)  # (B, S, S), which ours never forms
    expected = products @ v / (products.sum(-1, keepdim=True) + 1e-8)
    torch.testing.assert_close(linear_attention(torch.cat([k, q, v], dim=-1), weight), expected)


def test_the_performer_reads_keys_queries_and_values_in_that_order_and_returns_the_values():
    attention = PerformerAttention(20, DIM).double()
    x = torch.randn(2, 9, 20, dtype=torch.float64)
    kqv = attention.kqv(x)
    mixed, values = attention(x)
    gathered = linear_attention(kqv, attention.random_features)
    torch.testing.assert_close(mixed, attention.out(gathered))
    assert torch.equal(values, kqv[..., -DIM:])


def test_random_features_are_orthogonal_of_length_root_m_and_not_trained():
    attention = PerformerAttention(20, 64)
    features = attention.random_features
    torch.testing.assert_close(features @ features.T, 32 * torch.eye(32), rtol=0, atol=1e-4)
    assert "random_features" not in dict(attention.named_parameters())
    assert "random_features" in attention.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_of_a_token_layer_are_the_values_as_the_width_changes(kind):
    layer = small_net(kind).tokens_to_token.layer1
    x = torch.randn(2, 9, 147, dtype=torch.float64)
    mixed, values = layer.attention(layer.norm1(x))
    added = mixed + values
    torch.testing.assert_close(layer(x), added + layer.mlp(layer.norm2(added)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_performer_sums_its_exponentials_in_float32_whatever_the_autocast(dtype):
    """A feature along its row of W reaches exp(M / 2) = 9e6; float16 ends at 65504."""
    weight = PerformerAttention(8, 64).random_features
    v = torch.randn(1, 50, 64)
    kqv = torch.cat([weight[:1].expand(1, 50, -1), weight[:1].expand(1, 50, -1), v], -1).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        ours = linear_attention(kqv, weight)
    assert ours.dtype == dtype
    expected = kqv[..., -64:].float().mean(dim=1, keepdim=True).expand(1, 50, 64)  # all k alike
    torch.testing.assert_close(ours.float(), expected, rtol=0.01, atol=0.002)


# Positions and class token


def test_positions_are_sines_and_cosines_of_the_place_in_the_row():
    table = T2TViT(T2TConfig(8, 1, 1, 8, image_size=(32, 32))).position_embedding
    assert table.shape == (1, 5, 8)
    for place in range(5):
        for pair in range(4):
            angle = place / 10000 ** (2 * pair / 8)
            assert table[0, place, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[0, place, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_a_net_for_larger_images_has_the_same_positions_and_more_of_them():
    small, large = (T2TViT(T2TConfig(8, 1, 1, 8, image_size=(s, s))) for s in (32, 64))
    assert large.position_embedding.shape == (1, 17, 8)
    assert torch.equal(large.position_embedding[:, :5], small.position_embedding)


def test_the_class_token_comes_first_and_positions_are_added_to_all():
    net, images = small_net(), random_images()
    x = torch.cat([net.class_token.expand(2, -1, -1), net.tokens_to_token(images)], dim=1)
    torch.testing.assert_close(net.embed(images), x + net.position_embedding)


# Blocks: section 3.2


def test_a_block_adds_attention_and_mlp_each_to_what_its_norm_read():
    block, x = small_net().blocks[1], torch.randn(2, 5, WIDTH, dtype=torch.float64)
    q, k, v = (
        F.linear(block.norm1(x), block.attention.qkv.weight).unflatten(-1, (3, 2, -1)).unbind(2)
    )
    weights = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(WIDTH / HEADS)
    gathered = torch.einsum("bhij,bjhd->bihd", weights.softmax(-1), v).flatten(2)
    x1 = x + block.attention.out(gathered)
    hidden = F.gelu(block.mlp.dense1(block.norm2(x1)), approximate="none")
    torch.testing.assert_close(block(x), x1 + block.mlp.dense2(hidden))
    assert block.attention.qkv.bias is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_norm_has_the_epsilon_of_the_authors(kind):
    norms = [module for module in small_net(kind).modules() if isinstance(module, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-5] * (4 + 2 * DEPTH + 1)


# Features and head


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_one_linear_layer_on_the_class_token_after_the_final_norm(kind):
    net, images = small_net(kind), random_images()
    features = net.features(images)
    torch.testing.assert_close(features, net.norm(net.encode(images))[:, 0])
    torch.testing.assert_close(net(images), features @ net.head.weight.T + net.head.bias)


def test_a_net_without_classes_gives_its_features():
    net, images = small_net(classes=0), random_images()
    assert isinstance(net.head, nn.Identity)
    assert torch.equal(net(images), net.features(images))
    assert net(images).shape == (2, WIDTH)


def test_a_reset_head_is_zero_for_its_new_classes_and_leaves_the_features_alone():
    net, images = small_net(), random_images()
    before = net.features(images)
    net.reset_head(7, bias=-2.0)
    assert torch.equal(net(images), torch.full((2, 7), -2.0, dtype=torch.float64))
    assert torch.equal(net.features(images), before)
    assert (net.config.classes, net.config.head_bias) == (7, -2.0)
    net.reset_head(0)
    assert torch.equal(net(images), before)
    net.reset_head(3)
    assert net(images).shape == (2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_complete_even_for_a_net_made_without_memory(kind):
    net, images = small_net(kind), random_images()
    with torch.device("meta"):
        same = T2TViT(net.config)
    same.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(same.eval()(images), net(images))


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_of_an_image_do_not_depend_on_the_rest_of_the_batch(kind):
    net, images = small_net(kind), random_images(batch=3)
    torch.testing.assert_close(net(images)[:1], net(images[:1]))
    assert net(images[:0]).shape == (0, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind):
    net = small_net(kind, stochastic_depth=0.0)
    net(random_images()).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


# Dropout and stochastic depth


@pytest.mark.parametrize("kind, rate", [("performer", 0.1), ("transformer", 0.0)])
def test_a_performer_layer_drops_a_tenth_and_the_rest_what_the_config_says(kind, rate, monkeypatch):
    net, images, dropped = small_net(kind, dropout=0.3), random_images(), []
    expected = net(images)
    monkeypatch.setattr(F, "dropout", lambda x, p, *_: dropped.append((tuple(x.shape), p)) or x)
    logits = net.train()(images)
    attention_mlp_inside_and_after = [rate, 0.0, rate]
    layer1 = [((2, 64, DIM), p) for p in attention_mlp_inside_and_after]
    layer2 = [((2, 16, DIM), p) for p in attention_mlp_inside_and_after]
    tokens, hidden = ((2, 5, WIDTH), 0.3), ((2, 5, MLP), 0.3)
    assert dropped == [*layer1, *layer2, tokens, *DEPTH * [tokens, hidden, tokens]]
    torch.testing.assert_close(logits, expected)  # nothing else is random


def test_stochastic_depth_grows_evenly_from_nothing_to_what_the_config_says():
    net = small_net(stochastic_depth=0.4)
    assert [block.stochastic_depth for block in net.blocks] == pytest.approx([0, 0.2, 0.4])
    assert T2TViT(T2TConfig(8, 1, 1, 8, stochastic_depth=0.4)).blocks[0].stochastic_depth == 0


def test_stochastic_depth_leaves_a_branch_out_for_some_images_and_scales_it_up_for_the_others():
    torch.manual_seed(0)
    block = small_net(stochastic_depth=0.4).blocks[-1].train()
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64).expand(400, -1, -1)
    attention = block.attention(block.norm1(x[:1]))
    nn.init.zeros_(block.mlp.dense2.weight)
    nn.init.zeros_(block.mlp.dense2.bias)
    branch = block(x) - x
    left_out = (branch == 0).all(dim=(1, 2))
    assert 0.3 < left_out.double().mean() < 0.5
    kept = branch[~left_out]
    torch.testing.assert_close(kept, (attention / 0.6).expand_as(kept))
    torch.testing.assert_close(block.eval()(x) - x, attention.expand_as(x))


# Initial values, as the authors' code draws them


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_weights_are_normal_with_deviation_two_hundredths_and_biases_zero(kind):
    torch.manual_seed(0)
    net = T2TViT(T2TConfig(128, 2, 2, 256, kind, classes=100, image_size=(32, 32), head_bias=-3.0))
    assert torch.equal(net.head.bias, torch.full((100,), -3.0))
    nn.init.zeros_(net.head.bias)
    dense = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert len(dense) == 2 * 4 + 1 + 2 * 4 + 1
    for layer in dense:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert layer.weight.abs().max() > 0.05, "not cut at two deviations"
        assert layer.bias is None or not layer.bias.any()
    assert net.class_token.std().item() == pytest.approx(0.02, rel=0.2)


# Words that are wrong


def test_images_of_another_size_are_refused_by_an_error_that_names_both_sizes():
    with pytest.raises(ValueError, match=r"\b48x32\b.*\b32x48\b"):
        small_net(image_size=(32, 48))(random_images(48, 32))


def test_an_image_size_from_json_becomes_a_tuple():
    assert T2TConfig(8, 1, 1, 8, image_size=[32, 48]).image_size == (32, 48)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heads": 5}, "5 heads .* width 24"),
        ({"depth": 0}, "depth is 0"),
        ({"token_dim": 1}, "token_dim is 1"),
        ({"classes": -1}, "classes is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"stochastic_depth": -0.1}, "stochastic_depth is -0.1"),
        ({"head_bias": math.nan}, "head_bias is nan"),
        ({"tokens_to_token": "convolution"}, "'convolution' .* 'performer' or 'transformer'"),
        ({"image_size": (30, 50)}, "30x50 is not a multiple of 16.*32x48"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(options, words):
    fields = {"width": WIDTH, "depth": 1, "heads": 3, "mlp_width": MLP} | options
    with pytest.raises(ValueError, match=words):
        T2TConfig(**fields)
