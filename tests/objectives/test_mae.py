"""Masked autoencoders: the loss and gradients of transformers' ViTMAE, and what the net sees."""

import numpy as np
import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from small_nets import VITS, images_for, small_net, vit_config
from vitkit.data.transforms import normalise
from vitkit.errors import UsageError
from vitkit.models.nets import make
from vitkit.objectives.mae import MaskedAutoencoder, check_mae
from vitkit.objectives.patches import patchify
from vitkit.objectives.settings import MaskingConfig

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL = {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 4}
PLACES = np.array([5, 2])
NO_LABELS = torch.zeros(2, dtype=torch.int64)


def learner(config=None, **masking):
    net = small_net(config or vit_config())
    net.reset_head(0)
    torch.manual_seed(0)
    return MaskedAutoencoder(net, MaskingConfig(**SMALL | masking), 0, *IMAGENET)


# As transformers has it

BLOCK = {  # the name of ours: those of theirs, stacked
    "norm1": ["layernorm_before"], "norm2": ["layernorm_after"],
    "attention.qkv": ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    "attention.out": ["attention.o_proj"], "mlp.dense1": ["mlp.fc1"], "mlp.dense2": ["mlp.fc2"],
}  # fmt: skip
REST = {
    "net.patch_embedding": ["vit.embeddings.patch_embeddings.projection"],
    "net.norm": ["vit.layernorm"], "embedding": ["decoder.decoder_embed"],
    "norm": ["decoder.decoder_norm"], "head": ["decoder.decoder_pred"],
}  # fmt: skip
ALONE = {
    "net.class_token": "vit.embeddings.cls_token", "mask_token": "decoder.mask_token",
    # Fixed in both; theirs have other wavelengths (D / 4 of them up to, not with, 20,000 pi).
    "net.position_embedding": "vit.embeddings.position_embeddings",
    "position_embedding": "decoder.decoder_pos_embed",
}  # fmt: skip


def names(depth, decoder_depth):
    """Every name of ours -> those of theirs whose tensors, stacked, it is."""
    layers = dict(REST)
    stacks = {("net.blocks", "vit.layers"): depth,
              ("decoder_blocks", "decoder.decoder_layers"): decoder_depth}  # fmt: skip
    for (prefix, other), count in stacks.items():
        for i in range(count):
            for ours, theirs in BLOCK.items():
                layers[f"{prefix}.{i}.{ours}"] = [f"{other}.{i}.{one}" for one in theirs]
    found = {name: [other] for name, other in ALONE.items()}
    for ours, theirs in layers.items():
        for part in ("weight", "bias"):
            found[f"{ours}.{part}"] = [f"{one}.{part}" for one in theirs]
    return found


def pair(normalised):
    """The two with the same weights, in float64 (their written-out softmax would be in float32)."""
    torch.manual_seed(0)
    theirs = ViTMAEForPreTraining(ViTMAEConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=16, patch_size=4, decoder_num_attention_heads=4, decoder_hidden_size=32,
        decoder_num_hidden_layers=3, decoder_intermediate_size=128, mask_ratio=0.75,
        norm_pix_loss=normalised, layer_norm_eps=1e-6, attn_implementation="sdpa",
    )).double().eval()  # fmt: skip
    with torch.no_grad():
        for weight in theirs.parameters():  # positions too: their decoder's are made of zeros
            weight.add_(torch.randn_like(weight), alpha=0.1)
    net = make(vit_config(width=16, depth=2, image_size=(16, 16), gelu="erf", classes=0,
                          positions="sincos2d"))  # fmt: skip
    masking = MaskingConfig(
        rate=0.75, normalised=normalised, decoder_width=32, decoder_depth=3, decoder_heads=4
    )
    ours = MaskedAutoencoder(net, masking, 0, *IMAGENET).double().eval()
    state = theirs.state_dict()
    taken = {name: torch.cat([state[n] for n in others]) for name, others in names(2, 3).items()}
    ours.load_state_dict(taken)  # strictly
    return ours, theirs


@pytest.mark.parametrize("normalised", [True, False])
def test_loss_and_gradients_are_those_of_transformers(normalised):
    ours, theirs = pair(normalised)
    images = images_for(ours.net, 3).double()
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = theirs(images, noise=noise)
    found = ours.error(images, noise.numpy())
    torch.testing.assert_close(found, expected.loss, rtol=1e-9, atol=0)
    _, hidden = ours.predict(images, noise.numpy())
    assert torch.equal(expected.mask.bool().nonzero()[:, 1].view(3, 12), hidden.sort(dim=1)[0])
    found.backward()
    expected.loss.backward()
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    weights = dict(ours.named_parameters())
    assert len(weights) == len(names(2, 3)) - 2  # positions are fixed
    for name, weight in weights.items():
        expected_gradient = torch.cat([gradients[other] for other in names(2, 3)[name]])
        assert expected_gradient.any(), name
        torch.testing.assert_close(weight.grad, expected_gradient, rtol=1e-7, atol=1e-12, msg=name)


# What it is given, what it gives


def test_the_net_sees_the_patches_that_are_left_and_the_decoder_all():
    learns = learner(vit_config(image_size=(16, 16), registers=2), rate=0.75)
    lengths = {}
    for name, block in (("net", learns.vit.blocks[0]), ("decoder", learns.further_blocks[1])):
        block.register_forward_hook(
            lambda _, inputs, __, name=name: lengths.update({name: inputs[0].shape[1]})
        )
    learns(images_for(learns.net), NO_LABELS, PLACES)
    assert lengths == {"net": 3 + 4, "decoder": 3 + 16}


def test_the_net_gives_of_all_patches_what_it_gives_of_images():
    learns = learner()
    images = images_for(learns.net)
    every = torch.arange(6).expand(2, -1)
    torch.testing.assert_close(learns.encode(images, every), learns.vit.tokens(images))


def test_what_is_hidden_changes_nothing_that_the_net_gives():
    learns = learner()
    images = images_for(learns.net)
    seen, changed = torch.tensor([[0, 5], [2, 1]]), images.clone()
    changed[0, :, 4:8] += 1  # patches 2 and 3
    changed[1, :, 8:, :4] += 1  # patch 4
    assert torch.equal(learns.encode(images, seen), learns.encode(changed, seen))


def test_as_many_patches_of_each_image_are_hidden_by_its_place_alone():
    learns = learner(vit_config(image_size=(16, 16)), rate=0.6)
    images = images_for(learns.net, 2)
    _, hidden = learns.predict(images, learns.noise(PLACES))
    assert hidden.shape == (2, 10)  # 9.6
    _, alone = learns.predict(images[:1], learns.noise(PLACES[:1]))
    assert torch.equal(hidden[:1], alone)
    assert set(hidden[0].tolist()) != set(hidden[1].tolist())


@pytest.mark.parametrize("kind", ["token", "mean", "token+mean, registers", "no positions, SwiGLU"])
def test_every_weight_learns(kind):
    learns = learner(VITS[kind])
    learns(images_for(learns.net), NO_LABELS, PLACES).backward()
    for name, weight in learns.named_parameters():
        assert weight.grad is not None and weight.grad.any(), name


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_of_a_bfloat16_net_is_in_float32(normalised):
    learns = learner(normalised=normalised).bfloat16()
    found = learns(images_for(learns.net).bfloat16(), NO_LABELS, PLACES)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("normalised", [True, False])
def test_a_perfect_prediction_shows_the_image(normalised, monkeypatch):
    learns = learner(normalised=normalised)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 12, 8)))
    images = normalise(pixels, *IMAGENET)

    def perfect(tokens, seen, hidden):
        return learns.targets(images, hidden)[0]

    monkeypatch.setattr(learns, "decode", perfect)
    assert learns(images, NO_LABELS, PLACES) == 0
    shown = learns.examples(images, PLACES)
    assert shown.hidden.sum(dim=1).tolist() == [3, 3]
    torch.testing.assert_close(shown.predicted, pixels / 255)


def test_examples_show_other_patches_as_they_are():
    learns = learner()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 12, 8)))
    shown = learns.examples(normalise(pixels, *IMAGENET), PLACES)
    own, painted = patchify(pixels / 255, 4), patchify(shown.predicted, 4)
    same = torch.isclose(own, painted, atol=1e-6).all(dim=-1)
    assert torch.equal(same, ~shown.hidden)


# What cannot be


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("hybrid", "a convolutional stem"),
        ("relative positions", "relative positions"),
        ("positions in every layer", "positions at 'layers'"),
        ("distilled", "a distillation token"),
        ("map", "attention pooling"),
        ("hidden head", "a hidden head"),
    ],
)
def test_nets_it_cannot_train_are_named(kind, message):
    with pytest.raises(UsageError, match=message):
        MaskedAutoencoder(make(VITS[kind]), MaskingConfig(**SMALL), 0, *IMAGENET)


def test_attention_within_groups_needs_the_whole_grid():
    config = vit_config(attention=("row", "global", "global"))
    with pytest.raises(UsageError, match="attention"):
        check_mae(config, MaskingConfig(**SMALL))


def test_a_decoder_that_cannot_be_is_told():
    with pytest.raises(UsageError, match="mae's decoder: 3 heads do not divide the width 16"):
        check_mae(vit_config(), MaskingConfig(decoder_width=16, decoder_heads=3))


def test_a_rate_that_hides_all_is_told():
    with pytest.raises(UsageError, match=r"rate 0\.95 hides 6 of the 6 patches"):
        check_mae(vit_config(), MaskingConfig(**SMALL, rate=0.95))
