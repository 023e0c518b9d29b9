"""The batch norm before a head: what it computes, learns and leaves in a bundle."""

import pytest
import torch
from test_loop import ENGINE, first_batch, setup, stream_of
from test_trained import pico

from small_nets import CONVOLUTIONAL, VITS, images_for, small_net, vit_config
from vitkit.data.transforms import HALF, normalise
from vitkit.errors import UsageError
from vitkit.models.nets import make
from vitkit.training.config import LoraConfig, OptimizerConfig, TrainConfig
from vitkit.training.memory import memory
from vitkit.training.parallel import batch_norm_buffers
from vitkit.training.saving import load_state, save_state
from vitkit.training.step import fresh_state, train_step
from vitkit.training.trained import choose_trained, merged, set_to_train, trained_weights

HEAD_ALONE = ("*", "!head.*")


def with_norm(net, freeze=HEAD_ALONE):
    choose_trained(net, freeze, LoraConfig(), head_norm=True)
    return net


def test_the_head_reads_features_with_mean_0_and_variance_1_over_the_batch():
    net = small_net(VITS["token"])
    images = images_for(net, 6)
    with torch.no_grad():
        x = net.features(images)
        with_norm(net)
        set_to_train(net)
        found = net(images)
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(found, x @ net.head.weight.T + net.head.bias)
    assert 0 < net.head.weight.std() < 0.02  # it begins at random, and small


def test_it_learns_what_is_usual_where_all_below_it_is_frozen():
    """Also above frozen batch norms, which keep what they know."""
    net = with_norm(small_net(CONVOLUTIONAL["EfficientNet"]))
    assert set(trained_weights(net)) == {"head.weight", "head.bias"}
    assert batch_norm_buffers(net) == [net.head.norm.running_mean, net.head.norm.running_var]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    set_to_train(net)
    with torch.no_grad():
        net(images_for(net, 6))
    changed = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"head.norm.{name}" for name in names}


@pytest.mark.parametrize("config", [VITS["mean"], VITS["hybrid"], CONVOLUTIONAL["BiT"]])
def test_folded_in_a_plain_head_computes_the_same(config):
    net = with_norm(small_net(config))
    torch.nn.init.normal_(net.head.bias)
    set_to_train(net)
    images = images_for(net, 6)
    with torch.no_grad():
        for _ in range(3):
            net(images)
        plain = make(config).eval()
        plain.load_state_dict(merged(net.state_dict(), LoraConfig()))
        torch.testing.assert_close(plain(images), net.eval()(images), rtol=1e-4, atol=1e-5)


def test_a_resumed_probe_has_the_bits_of_one_that_was_never_stopped(tmp_path):
    given = setup(freeze=HEAD_ALONE, head_norm=True, optimizer=OptimizerConfig("lars"))

    def trained(state, steps):
        batches = stream_of(given).batches(first=state.position)
        for _ in range(steps):
            train_step(given, state, next(batches), 0.5)
            state.step, state.position = state.step + 1, state.position + 1
        batches.close()
        return state

    def fresh():
        return fresh_state(pico(), given.config, ENGINE)

    whole, again = trained(fresh(), 6), fresh()
    load_state(save_state(tmp_path, trained(fresh(), 3)), again)
    found = trained(again, 3).evaluated()
    expected = whole.evaluated()
    assert found.keys() == expected.keys() and "head.norm.running_var" in found
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_step_that_is_skipped_leaves_its_statistics_as_they_were():
    given = setup(freeze=HEAD_ALONE, head_norm=True)
    state = fresh_state(pico(), given.config, ENGINE)
    batch = first_batch(given)
    mean = state.net.get_submodule("head.norm").get_buffer("running_mean")
    broken = state.net.register_forward_hook(lambda net, inputs, out: torch.nan * out)
    train_step(given, state, batch, 0.1)
    assert not mean.any()
    broken.remove()
    train_step(given, state, batch, 0.1)
    with torch.no_grad():
        seen = pico().features(normalise(batch.images, HALF, HALF)).mean(0)
    torch.testing.assert_close(mean, 0.1 * seen)


def test_nets_and_settings_that_it_does_not_go_with_are_refused():
    for config in (VITS["distilled"], vit_config(classes=0)):
        with pytest.raises(UsageError, match="head_norm is for nets with one linear head"):
            with_norm(make(config), freeze=())
    with pytest.raises(UsageError, match="linear_probe fits a head without a norm"):
        TrainConfig(head_norm=True, linear_probe=True)
    with pytest.raises(UsageError, match="head_norm is True, but the objective supervised alone"):
        TrainConfig(head_norm=True, objective="mae")


def test_its_memory_is_planned_for_a_single_image_too():
    def planned(images, **fields):
        config = TrainConfig(freeze=HEAD_ALONE, **fields)
        return memory(VITS["token"], config, batch=images).total

    assert planned(64, head_norm=True) > planned(64)
    assert 0 < planned(1, head_norm=True) < planned(64, head_norm=True)
