"""relevance: which patches speak for a class."""

import pytest
import torch
from torch import Tensor
from written_out import KINDS, WITHOUT, images_for, made, weights_of, written_out

from vitkit.errors import UsageError
from vitkit.inspection.attention import read_by_head
from vitkit.inspection.relevance import relevance
from vitkit.models.nets import make


def by_definition(net, images: Tensor, classes: Tensor) -> Tensor:
    """R <- R + mean over heads of (dy/dA * A)+ R, with whole matrices: (B, 3, ., .) -> (B, N).

    A is part of the graph here, so that autograd differentiates by it.
    """
    probe: list[Tensor] = []
    if getattr(net, "pool", None) is not None:
        net.pool.forward = lambda x: pooled(net.pool, x, probe)
    logits, maps = written_out(net, images)
    score = logits[torch.arange(len(images)), classes].sum()
    gradients = torch.autograd.grad(score, maps + probe)
    product = torch.eye(maps[0].shape[-1])
    for weights, gradient in zip(maps, gradients[: len(maps)], strict=True):
        product = product + (weights * gradient).clamp(min=0).mean(dim=1) @ product
    shares = read_by_head(net).expand(len(images), -1)
    if probe:
        del net.pool.forward
        shares = (probe[0] * gradients[-1]).clamp(min=0).mean(dim=1)[:, 0]
    return (shares[:, None] @ product).detach()[:, 0, net.config.prefix :]


def pooled(pool, x: Tensor, probe: list[Tensor]) -> Tensor:
    """AttentionPool.forward with its weights kept."""
    q = pool.q(pool.probe).expand(len(x), -1, -1).unflatten(-1, (pool.heads, -1)).transpose(1, 2)
    k, v = (
        part.unflatten(-1, (pool.heads, -1)).transpose(1, 2) for part in pool.kv(x).chunk(2, -1)
    )
    probe.append(weights_of(None, q, k))
    mixed = pool.out((probe[0] @ v).transpose(1, 2).flatten(2))
    return (mixed + pool.mlp(pool.norm(mixed)))[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_attention_times_its_gradient_rolled_out(kind):
    net = made(kind)
    images, classes = images_for(net, 3), torch.tensor([0, 4, 2])
    found = relevance(net, images, classes.tolist())
    assert found.shape == (3, *net.config.grid)
    assert found.dtype == torch.float32 and not found.requires_grad
    expected = by_definition(net, images, classes)
    assert expected.std() > 1e-4
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-4, atol=1e-6)


def test_without_classes_it_is_of_the_one_predicted_and_one_class_is_for_all_images():
    net = made("ViT")
    images = images_for(net, 4)
    predicted = net(images).argmax(dim=-1)
    assert torch.equal(relevance(net, images), relevance(net, images, predicted.tolist()))
    assert torch.equal(relevance(net, images, 3), relevance(net, images, [3] * 4))
    assert (relevance(net, images, 3) - relevance(net, images, 1)).abs().max() > 1e-3


def test_images_do_not_touch_each_other():
    net = made("ViT")
    images = images_for(net, 3)
    alone = torch.cat([relevance(net, image[None], 2) for image in images])
    torch.testing.assert_close(relevance(net, images, 2), alone, rtol=1e-4, atol=1e-6)


def test_it_leaves_no_gradient_and_works_on_frozen_weights_and_under_inference_mode():
    net = made("ViT")
    images = images_for(net)
    expected = relevance(net, images)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not images.requires_grad
    net.requires_grad_(False)
    assert torch.equal(relevance(net, images), expected)
    with torch.inference_mode():
        assert torch.equal(relevance(net, images + 0), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_what_cannot_be_asked_is_refused():
    net = made("ViT")
    images = images_for(net)
    with pytest.raises(UsageError, match="there is no class 5: this net has 0 to 4"):
        relevance(net, images, [0, 5])
    with pytest.raises(UsageError, match="3 classes given for 2 images; give one for each"):
        relevance(net, images, [0, 1, 2])
    net.reset_head(0)
    with pytest.raises(UsageError, match="this net has no head"):
        relevance(net, images)
    with pytest.raises(UsageError, match="filters and Grad-CAM apply"):
        relevance(make(WITHOUT[0]), images)


def test_a_head_of_zeros_speaks_for_nothing_but_is_no_error():
    net = made("mean")
    net.reset_head(5)
    found = relevance(net, images_for(net), 1)
    torch.testing.assert_close(found, torch.full_like(found, 1 / found[0].numel()))
