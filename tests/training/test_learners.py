"""Which module a run trains, and what of it is the net."""

import pytest
import torch

from small_nets import small_net, vit_config
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError
from vitkit.models.variants import config as net_config
from vitkit.objectives.distillation import Distilling, Teacher
from vitkit.objectives.mae import MaskedAutoencoder
from vitkit.objectives.masking import MaskedPatches
from vitkit.objectives.settings import ContrastiveConfig, MaskingConfig
from vitkit.objectives.simclr import SimCLR
from vitkit.training.config import DataConfig, TrainConfig
from vitkit.training.learners import bare, learner_of, of_net
from vitkit.training.memory import memory

DECODER = MaskingConfig(rate=0.5, decoder_width=32, decoder_depth=1, decoder_heads=2)
CONFIGS = {
    MaskedPatches: TrainConfig(objective="masked-patches"),
    MaskedAutoencoder: TrainConfig(objective="mae", masking=DECODER),
    SimCLR: TrainConfig(
        objective="simclr", batch_size=4, data=DataConfig(repeats=2),
        contrastive=ContrastiveConfig(hidden_width=8, width=4),
    ),
}  # fmt: skip


def headless():
    net = small_net(vit_config())
    net.reset_head(0)
    return net


def test_where_labels_alone_are_learned_the_net_itself_is_trained():
    net = small_net(vit_config())
    assert learner_of(net, TrainConfig()) is net
    assert bare(net) is net
    assert of_net(net, net.state_dict()).keys() == net.state_dict().keys()


def test_a_teacher_is_learned_from_beside_the_labels():
    kept = Preprocessing.direct((12, 8))
    teacher = Teacher(small_net(vit_config(), seed=1), kept, kept)
    assert isinstance(
        learner_of(small_net(vit_config()), TrainConfig(), teacher=teacher), Distilling
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_of_what_learns_without_labels_only_the_net_is_kept(kind):
    net = headless()
    learner = learner_of(net, CONFIGS[kind])
    assert isinstance(learner, kind) and bare(learner) is net
    whole, own = learner.state_dict(), net.state_dict()
    kept = of_net(learner, whole)
    assert kept.keys() == own.keys() and len(whole) > len(own)
    assert all(torch.equal(kept[name], own[name]) for name in own)


def test_images_are_told_apart_by_their_normalisation():
    learner = learner_of(headless(), CONFIGS[MaskedAutoencoder], (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert isinstance(learner, MaskedAutoencoder)
    assert (learner.mean, learner.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_net_that_an_objective_is_not_for_is_refused():
    net = small_net(vit_config(pooling="map"))
    net.reset_head(0)
    with pytest.raises(UsageError, match="attention pooling"):
        learner_of(net, CONFIGS[MaskedPatches])


def test_mae_takes_less_memory_than_learning_by_labels_as_its_net_sees_a_quarter():
    masking = MaskingConfig(0.75, decoder_width=64, decoder_depth=1, decoder_heads=2)
    mae = TrainConfig(objective="mae", masking=masking)
    hidden, labels = (
        memory(net_config("ViT-Pico/4", classes, 64), config, batch=16)
        for classes, config in ((0, mae), (10, TrainConfig()))
    )
    assert hidden.activations < 0.6 * labels.activations and hidden.total < labels.total
