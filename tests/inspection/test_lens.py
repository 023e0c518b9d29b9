"""The logit lens: what the net would say after each layer."""

import numpy as np
import pytest
import torch

from small_nets import CLASSES, CONVOLUTIONAL, VITS, WITH_TOKENS, images_for, small_net, vit_config
from vitkit.data.pipeline import Batch
from vitkit.errors import UsageError
from vitkit.inspection import lens, lens_accuracy, lens_logits


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_the_last_layer_says_exactly_what_the_net_says(name):
    net = small_net(WITH_TOKENS[name])
    images = images_for(net)
    logits = lens_logits(net, images)
    assert logits.shape == (net.config.depth + 1, 2, CLASSES)
    with torch.no_grad():
        assert torch.equal(logits[-1], net(images))
    assert not torch.allclose(logits[-2], logits[-1], atol=1e-3)


@pytest.mark.parametrize("name", ["token", "map", "hidden head", "distilled"])
def test_a_layer_says_what_the_net_cut_off_after_it_says(name):
    net = small_net(VITS[name])
    images = images_for(net)
    logits = lens_logits(net, images)
    for layer in (2, 1, 0):
        del net.blocks[layer]
        with torch.no_grad():
            torch.testing.assert_close(logits[layer], net(images))


def test_before_the_first_block_a_class_token_says_the_same_of_every_image():
    logits = lens_logits(net := small_net(VITS["token"]), images_for(net, 3))
    torch.testing.assert_close(logits[0, 0], logits[0, 1])
    assert not torch.allclose(logits[1, 0], logits[1, 1], atol=1e-3)
    logits = lens_logits(net := small_net(VITS["mean"]), images_for(net, 3))
    assert not torch.allclose(logits[0, 0], logits[0, 1], atol=1e-3)


def test_the_likeliest_classes_come_first_with_their_probabilities():
    net = small_net(VITS["token"])
    images = images_for(net, 3)
    classes, probabilities = lens(net, images, top=2)
    assert classes.shape == probabilities.shape == (3, 4, 2)
    with torch.no_grad():
        shares = net(images).softmax(-1)
    torch.testing.assert_close(probabilities[:, -1], shares.sort(descending=True).values[:, :2])
    assert torch.equal(classes[:, -1, 0], shares.argmax(-1))
    assert lens(net, images, top=99)[0].shape == (3, 4, CLASSES)


def test_where_there_are_several_labels_each_has_a_probability_of_its_own():
    net = small_net(VITS["token"])
    images = images_for(net)
    _, probabilities = lens(net, images, top=CLASSES, shares=torch.sigmoid)
    torch.testing.assert_close(
        probabilities[:, -1], net(images).detach().sigmoid().sort(descending=True).values
    )


def test_accuracy_is_counted_over_all_batches_layer_by_layer():
    net = small_net(VITS["mean"])
    images = images_for(net, 7)
    best = lens_logits(net, images).argmax(-1)
    labels = best[1]  # what layer 1 says is right by definition
    curve = lens_accuracy(net, [Batch(images[:4], labels[:4]), Batch(images[4:], labels[4:])])
    np.testing.assert_array_equal(curve.x, [0, 1, 2, 3])
    np.testing.assert_allclose(curve.lines["top-1"], (best == labels).double().mean(1), rtol=1e-6)
    assert curve.lines["top-1"][1] == 1
    assert curve.lines["top-1"].min() < 1
    assert curve.share


def test_of_several_labels_any_is_right_and_an_image_without_one_does_not_count():
    net = small_net(VITS["mean"])
    images = images_for(net, 3)
    best = lens_logits(net, images)[-1].argmax(-1)
    labels = torch.zeros(3, CLASSES)
    labels[0, best[0]] = labels[0, (best[0] + 1) % CLASSES] = 1  # right
    labels[1, (best[1] + 1) % CLASSES] = 1  # wrong
    curve = lens_accuracy(net, [Batch(images, labels)])
    assert curve.lines["top-1"][-1] == 0.5
    with pytest.raises(ValueError, match="no image with a label"):
        lens_accuracy(net, [Batch(images[2:], labels[2:])])
    with pytest.raises(ValueError, match="no image with a label"):
        lens_accuracy(net, [])


def test_a_net_in_training_is_looked_at_without_dropout_and_goes_on_training():
    net = small_net(vit_config(dropout=0.5)).train()
    net.head.eval()
    images = images_for(net)
    logits = lens_logits(net, images)
    assert net.training and net.blocks[1].mlp.dropout.training and not net.head.training
    assert torch.equal(logits, lens_logits(net, images))
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in net.blocks)


def test_hooks_are_taken_away_where_the_net_fails():
    net = small_net(VITS["token"])
    with pytest.raises(ValueError, match="built for 12x8"):
        lens_logits(net, torch.zeros(1, 3, 8, 8))
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in net.blocks)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_net_without_tokens_says_which_nets_have_a_lens(name):
    net = small_net(CONVOLUTIONAL[name])
    with pytest.raises(UsageError, match=f"kind {name} has no layers of tokens.*T2T-ViT have"):
        lens(net, images_for(net))


def test_a_net_without_a_head_is_refused():
    net = small_net(VITS["token"])
    net.reset_head(0)
    with pytest.raises(UsageError, match="no head"):
        lens(net, images_for(net))
