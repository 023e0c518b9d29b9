"""The same weights in timm's Vision Transformer give the same logits."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from vitkit.models.variants import build
from vitkit.models.vit import VisionTransformer, ViTConfig

timm = pytest.importorskip("timm")
TimmVisionTransformer = timm.models.vision_transformer.VisionTransformer

NAMES = {
    "patch_embedding": "patch_embed.proj",
    "class_token": "cls_token",
    "position_embedding": "pos_embed",
    "attention": "attn",
    "out": "proj",
    "dense1": "fc1",
    "dense2": "fc2",
}


def timm_names(net: VisionTransformer) -> dict[str, Tensor]:
    """The net's weights by timm's names: the same parts, part by part."""
    state = net.state_dict()
    return {".".join(NAMES.get(part, part) for part in name.split(".")): state[name]
            for name in state}  # fmt: skip


def randomised(net: VisionTransformer) -> VisionTransformer:
    """The net in eval mode with noise on every parameter, so that none of them is zero or one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net.eval()


def small_net(**options) -> VisionTransformer:
    options = {"image_size": (32, 32), "classes": 7, "gelu": "erf"} | options
    return randomised(VisionTransformer(ViTConfig(8, 48, 3, 3, 96, **options)))


def small_timm(net: VisionTransformer, **options) -> nn.Module:
    """timm's net of the same shape with the same weights."""
    return loaded(net, TimmVisionTransformer(
        img_size=net.config.image_size, patch_size=8, embed_dim=48, depth=3, num_heads=3,
        mlp_ratio=2, num_classes=7, **options,
    ))  # fmt: skip


def loaded(net: VisionTransformer, peer: nn.Module) -> nn.Module:
    peer.load_state_dict(timm_names(net), assign=True)
    return peer.eval()


@torch.no_grad()
def assert_same_logits(net: VisionTransformer, peer: nn.Module, scale: float = 1.0) -> None:
    images = torch.randn(2, 3, *net.config.image_size) * scale
    ours, theirs = net(images), peer(images)
    assert ours.std() > 0.1, "the weights are such that there is something to compare"
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())


def test_vit_b16_gives_the_logits_of_timm():
    net = randomised(build("ViT-B/16", gelu="erf"))
    with torch.device("meta"):  # timm's own first weights are not needed
        peer = timm.create_model("vit_base_patch16_224")
    assert_same_logits(net, loaded(net, peer))


def test_a_rectangular_net_gives_the_logits_of_timm():
    net = small_net(image_size=(32, 56))
    assert_same_logits(net, small_timm(net))


def test_tanh_gelu_gives_the_logits_of_timm():
    net = small_net(gelu="tanh")
    assert_same_logits(net, small_timm(net, act_layer="gelu_tanh"))


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-3])
def test_every_norm_epsilon_gives_the_logits_of_timm(eps):
    net = small_net(norm_eps=eps)
    with torch.no_grad():  # tokens of so little contrast that the epsilon decides
        net.patch_embedding.bias.zero_()
        net.position_embedding.mul_(1e-2)
        net.class_token.mul_(1e-2)
    peer = small_timm(net, norm_layer=partial(nn.LayerNorm, eps=eps))
    assert_same_logits(net, peer, scale=1e-2)


def test_mean_pooling_gives_the_logits_of_timm_with_the_norm_before_the_pool():
    net = small_net(pooling="mean")
    assert_same_logits(net, small_timm(net, global_pool="avg", class_token=False, fc_norm=False))


def test_mean_pooling_of_a_rectangle_gives_the_logits_of_timm_with_the_norm_before_the_pool():
    net = small_net(pooling="mean", image_size=(56, 32))
    assert_same_logits(net, small_timm(net, global_pool="avg", class_token=False, fc_norm=False))


@torch.no_grad()
def test_the_tokens_are_those_of_timm():
    net = small_net()
    images = torch.randn(2, 3, 32, 32)
    theirs = small_timm(net).forward_features(images)
    torch.testing.assert_close(net.tokens(images), theirs, rtol=0, atol=1e-5)
