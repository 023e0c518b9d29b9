"""The same weights in torchvision's Vision Transformer give the same logits."""

import torch
import torchvision
from torch import Tensor, nn

from vitkit.models.variants import build
from vitkit.models.vit import VisionTransformer, ViTConfig

NAMES = {
    "patch_embedding": "conv_proj",
    "position_embedding": "encoder.pos_embedding",
    "blocks": "encoder.layers",
    "norm": "encoder.ln",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attention": "self_attention",
    "out": "out_proj",
    "dense1": "0",
    "dense2": "3",
    "hidden": "heads.pre_logits",
    "head": "heads.head",
}


def torchvision_names(net: VisionTransformer) -> dict[str, Tensor]:
    """The net's weights by torchvision's names: the same parts, but for blocks and q, k, v."""
    state = net.state_dict()
    names = {}
    for name in state:
        renamed = ".".join(NAMES.get(part, part) for part in name.split("."))
        renamed = renamed.replace("encoder.layers.", "encoder.layers.encoder_layer_")
        names[renamed.replace("qkv.", "in_proj_")] = state[name]
    return names


def randomised(net: VisionTransformer) -> VisionTransformer:
    """The net in eval mode with noise on every parameter, so that none of them is zero or one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net.eval()


@torch.no_grad()
def assert_same_logits(net: VisionTransformer, peer: nn.Module) -> None:
    peer.load_state_dict(torchvision_names(net))
    images = torch.randn(2, 3, *net.config.image_size)
    ours, theirs = net(images), peer.eval()(images)
    assert ours.std() > 0.1, "the weights are such that there is something to compare"
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())


def test_vit_b16_gives_the_logits_of_torchvision():
    net = randomised(build("ViT-B/16", gelu="erf"))
    assert_same_logits(net, torchvision.models.vit_b_16())


def test_the_hidden_pre_training_head_gives_the_logits_of_torchvision():
    config = ViTConfig(
        8, 48, 3, 3, 96, classes=7, image_size=(32, 32), hidden_head=True, gelu="erf"
    )
    peer = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=96,
        num_classes=7, representation_size=48,
    )  # fmt: skip
    assert_same_logits(randomised(VisionTransformer(config)), peer)
