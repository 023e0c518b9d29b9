"""Which weights are decayed, and how AdamW and SGD move them."""

import pytest
import torch

from vitkit.models.variants import build
from vitkit.training.config import OptimizerConfig
from vitkit.training.optimizers import make_optimizer, parameter_groups


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
