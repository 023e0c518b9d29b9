"""grad_cam: where the evidence for a class lies."""

import pytest
import torch

from small_nets import CLASSES, EVERY, VITS, images_for, small_net
from vitkit.errors import UsageError
from vitkit.inspection import grad_cam

GRIDS = {"BiT": (4, 2), "AxialResNet": (4, 2), "EfficientNet": (2, 1), "mean": (2, 3)} | {
    f"T2T-ViT, {kind}": (2, 3) for kind in ("performer", "transformer")
}


@pytest.mark.parametrize("name", EVERY)
def test_every_kind_of_net_has_a_map_between_0_and_1_for_each_image(name):
    net = small_net(EVERY[name])
    heat = grad_cam(net, images_for(net, 3), [0, 1, 4])
    assert heat.shape == (3, *GRIDS.get(name, (3, 2)))
    assert heat.min() >= 0
    assert set(heat.amax(dim=(1, 2)).tolist()) <= {0.0, 1.0}
    assert heat.max() == 1
    assert not heat.requires_grad


def by_hand(kept, logits, classes):
    """Equations 1 and 2 of the paper, one image and one channel at a time."""
    maps = []
    for i, label in enumerate(classes):
        (gradient,) = torch.autograd.grad(logits[i, label], kept, retain_graph=True)
        heat = torch.zeros(kept.shape[-2:])
        for channel in range(kept.shape[1]):
            heat += gradient[i, channel].mean() * kept[i, channel].detach()
        maps.append(heat.clamp_min(0) / heat.clamp_min(0).max().clamp_min(1e-30))
    return torch.stack(maps)


def map_and_logits(name, net, images):
    """The map of each kind of net, and the rest of the net written out."""
    if name == "hybrid":
        kept = net.stem(images)
        x = net.patch_embedding(kept).flatten(2).transpose(1, 2)
        x = torch.cat([net.class_token.expand(len(x), -1, -1), x], dim=1) + net.positions()
        for block in net.blocks:
            x = block(x)
        return kept, net.head(net.norm(x)[:, 0])
    if name in ("token", "T2T-ViT, performer"):
        x = net.embed(images)
        for block in net.blocks[:-1]:
            x = block(x)
        height, width = net.config.grid
        kept = x[:, 1:].transpose(1, 2).reshape(len(x), -1, height, width)
        x = torch.cat([x[:, :1], kept.flatten(2).transpose(1, 2)], dim=1)
        return kept, net.head(net.norm(net.blocks[-1](x))[:, 0])
    kept = net.backbone(images) if name == "EfficientNet" else net.feature_map(images)
    return kept, net.head(kept.flatten(2).mean(2))


@pytest.mark.parametrize(
    "name", ["BiT", "AxialResNet", "EfficientNet", "hybrid", "token", "T2T-ViT, performer"]
)
def test_it_is_what_the_equations_say(name):
    net = small_net(EVERY[name])
    images = images_for(net, 3)
    kept, logits = map_and_logits(name, net, images)
    expected = by_hand(kept, logits, [3, 0, 2])
    torch.testing.assert_close(grad_cam(net, images, [3, 0, 2]), expected, atol=1e-4, rtol=1e-3)
    likeliest = by_hand(kept, logits, logits.argmax(1).tolist())
    torch.testing.assert_close(grad_cam(net, images), likeliest, atol=1e-4, rtol=1e-3)


def test_evidence_lies_where_a_class_is_put():
    net = small_net(EVERY["BiT"])
    with torch.no_grad():  # class 2 is what channel 0 of the map says
        net.head.weight.zero_()
        net.head.weight[2, 0] = 1
    images = images_for(net)
    heat = grad_cam(net, images, [2, 2])
    channel = net.feature_map(images)[:, 0].detach()
    torch.testing.assert_close(heat, channel / channel.amax(dim=(1, 2), keepdim=True))


def test_where_nothing_speaks_for_the_class_the_map_is_all_zero():
    net = small_net(EVERY["BiT"])
    with torch.no_grad():
        net.head.weight.copy_(-net.head.weight.abs())
    assert grad_cam(net, images_for(net), [1, 1]).abs().max() == 0


@pytest.mark.parametrize("name", ["BiT", "EfficientNet", "hybrid", "token"])
def test_the_net_is_left_as_it_was(name):
    net = small_net(EVERY[name]).train()
    net.head.eval()
    frozen = net.head.bias.requires_grad_(False)
    net.head.weight.grad = given = torch.ones_like(net.head.weight)
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    images = images_for(net)
    heat = grad_cam(net, images)
    assert net.training and not net.head.training
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in net.parameters() if p is not frozen)
    assert net.head.weight.grad is given and torch.equal(given, torch.ones_like(given))
    assert all(p.grad is None for p in net.parameters() if p is not net.head.weight)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    assert torch.equal(heat, grad_cam(net.eval(), images))  # without dropout, by running means
    assert not images.requires_grad and images.grad is None


def test_a_net_that_is_frozen_and_used_without_gradients_has_a_map_all_the_same():
    net = small_net(VITS["token"])
    images = images_for(net)
    expected = grad_cam(net, images)
    net.requires_grad_(False)
    with torch.inference_mode():
        assert torch.equal(grad_cam(net, images_for(net)), expected)
    with torch.no_grad():
        assert torch.equal(grad_cam(net, images), expected)


def test_hooks_are_taken_away_where_the_net_fails():
    net = small_net(VITS["token"])
    with pytest.raises(ValueError, match="built for 12x8"):
        grad_cam(net, torch.zeros(1, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("classes", [[0], [0, CLASSES], [-1, 0], 3])
def test_classes_that_the_net_has_not_are_refused(classes):
    net = small_net(VITS["token"])
    with pytest.raises(UsageError, match=r"a number from 0 to 4 for each of the 2 image"):
        grad_cam(net, images_for(net), classes)


def test_a_net_without_a_head_is_refused():
    net = small_net(EVERY["BiT"])
    images = images_for(net)
    net.reset_head(0)
    with pytest.raises(UsageError, match="no head"):
        grad_cam(net, images)
