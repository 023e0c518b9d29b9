"""What a protocol knows of the net before it has seen an image."""

import pytest
import torch

from small_nets import CLASSES, EVERY, images_for, small_net
from vitkit.workflows.protocols.job import width_of


@pytest.mark.parametrize("kind", EVERY)
def test_how_many_features_and_logits_an_image_has_is_known_of_every_net(kind):
    net = small_net(EVERY[kind])
    images = images_for(net, 1)
    with torch.no_grad():
        features = net.features(images)
    assert width_of(net, "features") == features.shape[1]
    assert width_of(net, "logits") == CLASSES
    net.reset_head(0)
    assert width_of(net, "logits") == width_of(net, "features")
