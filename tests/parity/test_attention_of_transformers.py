"""Attention is that which transformers' own eager path gives for the same weights."""

import pytest
import torch
from peers import images_for, on_meta, randomised

import vitkit
from vitkit.inspection.attention import attention, recorded

hf = pytest.importorskip("transformers")
hf.logging.set_verbosity_error()

SMALL = {
    "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96, "num_hidden_layers": 3,
    "image_size": 56, "patch_size": 14, "num_labels": 7,
}  # fmt: skip


@pytest.mark.parametrize(
    "base", ["ViT", "DeiT", "Dinov2", "Dinov2WithRegisters"], ids=lambda base: base
)
@torch.no_grad()
def test_attention_is_that_of_the_eager_path(room, base):
    config = getattr(hf, f"{base}Config")(**SMALL, attn_implementation="eager")
    peer = randomised(on_meta(getattr(hf, f"{base}ForImageClassification"), config))
    peer.save_pretrained(room)
    net = vitkit.load(room).net
    images = images_for(net, 2)
    theirs = torch.stack(peer(images, output_attentions=True).attentions, dim=1)
    ours = attention(net, images)
    assert theirs.shape == (2, 3, 3, net.config.tokens, net.config.tokens)
    assert theirs.std() > 0.02
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    plain = net(images)
    with recorded(net):
        assert torch.equal(net(images), plain)
