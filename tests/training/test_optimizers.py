"""Which weights are decayed, and how AdamW and SGD move them."""

import pytest
import torch

from vitkit.errors import UsageError
from vitkit.models.nets import make_meta
from vitkit.models.variants import build, config
from vitkit.training.config import OptimizerConfig
from vitkit.training.optimizers import layer_scales, make_optimizer, parameter_groups


def tiny_net(**options):
    return build("ViT-Pico/4", classes=3, image_size=8, **options)


def names_of(net, parameters):
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in net.named_parameters() if id(parameter) in wanted}


def test_biases_norms_class_token_and_positions_are_not_decayed():
    net = tiny_net(hidden_head=True)
    decayed, others = parameter_groups(net, weight_decay=0.3)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    decayed, others = names_of(net, decayed["params"]), names_of(net, others["params"])
    assert {"class_token", "position_embedding", "norm.weight", "head.bias"} <= others
    assert {"patch_embedding.weight", "blocks.0.attention.qkv.weight", "hidden.weight"} <= decayed
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert decayed | others == {name for name, _ in net.named_parameters()}


def test_adamw_decays_by_the_learning_rate_times_the_weight_decay():
    net = tiny_net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = make_optimizer(net, OptimizerConfig("adamw", learning_rate=0.1, weight_decay=0.5))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(net.named_parameters())
    name = "blocks.0.mlp.dense1.weight"
    torch.testing.assert_close(after[name], before[name] * (1 - 0.1 * 0.5))
    assert torch.equal(after["position_embedding"], before["position_embedding"])


def test_sgd_has_momentum_without_nesterov():
    net = torch.nn.Linear(1, 1, bias=False)
    start = net.weight.item()
    optimizer = make_optimizer(net, OptimizerConfig("sgd", 0.1, weight_decay=0.0, momentum=0.9))
    for _ in range(2):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step()
    assert net.weight.item() == pytest.approx(start - 0.1 * (1 + 1.9))


def test_layers_learn_at_the_rates_that_timm_gives_them():
    """But for the last norm, which BEiT and MAE count with the head, timm with the last block."""
    import timm
    from timm.optim import param_groups_layer_decay

    theirs = timm.create_model("vit_tiny_patch16_224", depth=5, num_classes=3, img_size=32)
    names = {id(p): name for name, p in theirs.named_parameters()}
    groups = param_groups_layer_decay(theirs, layer_decay=0.75)
    expected = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    net = make_meta(config("ViT-Ti/16", 3, 32))
    net.blocks = net.blocks[:5]
    ours = layer_scales(net, 0.75)
    assert {name.split(".")[0]: ours[name] for name in ours if "blocks" not in name} == {
        "class_token": expected["cls_token"], "position_embedding": expected["pos_embed"],
        "patch_embedding": expected["patch_embed.proj.weight"], "norm": 1.0,
        "head": expected["head.weight"],
    }  # fmt: skip
    blocks = [{f"{n}.{k.split('.')[2]}": v for n in range(5) for k, v in scales.items()
               if k.startswith(f"blocks.{n}.norm")} for scales in (ours, expected)]  # fmt: skip
    assert blocks[0] == pytest.approx(blocks[1]) and len(blocks[0]) == 10
    for n in range(5):
        assert len({v for k, v in ours.items() if k.startswith(f"blocks.{n}.")}) == 1
    assert ours["class_token"] == pytest.approx(0.75**6)


def test_units_of_a_stem_and_of_a_resnet_are_layers_too():
    hybrid = layer_scales(make_meta(config("R26+ViT-S/32", 3, 32)), 0.5)
    assert hybrid["head.weight"] == 1 and hybrid["blocks.11.mlp.dense1.weight"] == 0.5
    assert hybrid["blocks.0.norm1.bias"] == 0.5**12
    assert hybrid["stem.stages.3.1.conv1.weight"] == 0.5**13
    assert hybrid["stem.stages.0.0.conv1.weight"] == 0.5**20
    assert hybrid["stem.root.conv.weight"] == hybrid["position_embedding"] == 0.5**21
    bit = layer_scales(make_meta(config("BiT-R50x1", 3, 32)), 0.5)
    assert bit["head.bias"] == bit["norm.weight"] == 1
    assert (bit["stages.3.2.conv3.weight"], bit["stages.0.0.conv1.weight"]) == (0.5, 0.5**16)
    assert bit["root.weight"] == 0.5**17


def test_a_layer_decay_that_would_do_nothing_is_refused():
    with pytest.raises(UsageError, match="EfficientNet has no blocks"):
        layer_scales(make_meta(config("EfficientNet-B0", 3, 32)), 0.75)
    net = tiny_net().requires_grad_(False)
    net.head.requires_grad_(True)
    with pytest.raises(UsageError, match="nothing is trained below the head"):
        parameter_groups(net, 0.1, 0.75)


def test_groups_keep_decayed_weights_and_others_apart_in_each_layer():
    net = tiny_net()
    groups = parameter_groups(net, 0.3, layer_decay=0.5)
    assert len(groups) == 2 * (len(net.blocks) + 2)
    scales = layer_scales(net, 0.5)
    seen = set()
    for group in groups:
        names = names_of(net, group["params"])
        assert {scales[name] for name in names} == {group["scale"]}
        assert all((group["weight_decay"] == 0.3) == (n.endswith("weight") and "norm" not in n)
                   for n in names)  # fmt: skip
        seen |= names
    assert seen == {name for name, _ in net.named_parameters()}
