"""Which weights are trained: frozen by name, or adapters in their place."""

import sys

import pytest
import torch
from test_loop import ENGINE, first_batch, setup, stream_of

from vitkit.data.pipeline import Batch
from vitkit.data.transforms import normalise
from vitkit.errors import UsageError
from vitkit.models.nets import make_meta
from vitkit.models.variants import build, config
from vitkit.training.config import LoraConfig, OptimizerConfig
from vitkit.training.saving import load_state, save_state
from vitkit.training.step import fresh_state, train_step
from vitkit.training.trained import choose_trained, merged, trained_weights

NO_LORA, HEAD_ALONE = LoraConfig(), ("*", "!head.*")


def pico(model="ViT-Pico/4", side=8):
    torch.manual_seed(0)
    net = build(model, 10, side)
    torch.nn.init.normal_(net.head.weight, std=0.1)  # one of zeros hides what comes before it
    return net


def trained_names(*freeze, lora=NO_LORA, net=None):
    net = net or pico()
    choose_trained(net, freeze, lora)
    return set(trained_weights(net))


def values(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def trained_for(steps, given, net):
    state = fresh_state(net, given.config, given.engine)
    batches = stream_of(given).batches()
    for _ in range(steps):
        train_step(given, state, next(batches), 0.05)
        state.step += 1
    batches.close()
    return state


def test_the_last_name_that_matches_says_whether_a_weight_is_trained():
    everything = {name for name, _ in pico().named_parameters()}
    assert trained_names() == everything
    assert trained_names(*HEAD_ALONE) == {"head.weight", "head.bias"}
    lower = {n for n in everything if n.startswith(("patch_embedding.", "blocks.0.", "blocks.1."))}
    assert len(lower) == 2 + 2 * 12
    assert trained_names("patch_embedding.*", "blocks.[01].*") == everything - lower
    assert trained_names("!head.*", "blocks.*") == everything - {
        n for n in everything if n.startswith("blocks.")
    }
    assert trained_names("*", "!*.bias", "!head.weight", "blocks.0.*") == {
        n for n in everything if n == "head.weight" or n.endswith("bias")
    } - {n for n in everything if n.startswith("blocks.0.")}


@pytest.mark.parametrize(
    ("freeze", "said"),
    [
        (("block.*",), r"'block\.\*', which matches no weight.*nearest are blocks\.0\."),
        (("*", "!heads.*"), r"'!heads\.\*', which matches no weight.*nearest are head\.weight"),
        (("*",), "leaves no weight to train"),
        (("blocks.0.*", "head.*"), "starts anew"),
    ],
)
def test_names_that_leave_nothing_to_learn_or_match_nothing_are_refused(freeze, said):
    with pytest.raises(UsageError, match=said):
        trained_names(*freeze)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_weights_keep_their_bits_and_cost_no_state(optimizer):
    freeze = ("patch_embedding.*", "position_embedding", "blocks.[01].*")
    given = setup(freeze=freeze, optimizer=OptimizerConfig(optimizer, weight_decay=0.1))
    net = pico()
    before = values(net)
    state = trained_for(20, given, net)
    frozen = before.keys() - trained_weights(net).keys()
    assert "blocks.1.norm2.bias" in frozen and "blocks.2.norm1.weight" not in frozen
    for name, now in net.state_dict().items():
        assert torch.equal(now, before[name]) == (name in frozen), name
    assert all(dict(net.named_parameters())[name].grad is None for name in frozen)
    assert state.average.keys() == trained_weights(net).keys()
    assert {id(p) for p in state.optimizer.state} == {id(p) for p in trained_weights(net).values()}
    with state.averaged() as averaged:
        shown = values(averaged)
    assert all(torch.equal(shown[name], before[name]) for name in frozen)
    assert not torch.equal(shown["head.weight"], net.head.weight)
    assert state.evaluated().keys() == before.keys()


def test_a_head_trained_alone_moves_as_a_linear_layer_on_features():
    """Written out: SGD with momentum and clipping on features that are computed once."""
    given = setup(freeze=HEAD_ALONE, optimizer=OptimizerConfig("sgd", weight_decay=0.0))
    net = pico()
    head = torch.nn.Linear(96, 10)
    head.load_state_dict(net.head.state_dict())
    batch = first_batch(given)
    with torch.no_grad():
        features = net.features(normalise(batch.images, (0.5,) * 3, (0.5,) * 3))
    state = fresh_state(net, given.config, ENGINE)
    speed = {name: 0 for name, _ in head.named_parameters()}
    for _ in range(20):
        train_step(given, state, batch, 0.1)
        head.zero_grad()
        torch.nn.functional.cross_entropy(head(features), batch.labels).backward()
        norm = torch.cat([p.grad.flatten() for p in head.parameters()]).norm()
        with torch.no_grad():
            for name, p in head.named_parameters():
                speed[name] = 0.9 * speed[name] + p.grad / max(1.0, norm)
                p -= 0.1 * speed[name]
    torch.testing.assert_close(net.head.weight, head.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net.head.bias, head.bias, rtol=1e-5, atol=1e-6)


def test_frozen_batch_norms_do_not_drift_and_those_above_learn():
    given = setup(freeze=("backbone.[0-4].*",), batch_size=4)
    net = pico("EfficientNet-B0", 32)
    state = fresh_state(net, given.config, ENGINE)
    before = values(net)
    images = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    for _ in range(2):
        train_step(given, state, Batch(images, torch.arange(4)), 0.01)
    for name, now in net.state_dict().items():
        if name.startswith(tuple(f"backbone.{n}." for n in range(5))):
            assert torch.equal(now, before[name]), name
    top = "backbone.8.1.running_mean"
    assert not torch.equal(net.state_dict()[top], before[top])


def test_with_adapters_they_and_the_head_are_trained_unless_freeze_says_otherwise():
    lora, head = LoraConfig(rank=2), {"head.weight", "head.bias"}
    names = trained_names(lora=lora)
    assert head < names and all(".lora_" in name for name in names - head)
    adapted = {name.split(".lora_")[0] for name in names - head}
    assert adapted == {f"blocks.{n}.attention.{d}" for n in range(len(pico().blocks))
                       for d in ("qkv", "out")}  # fmt: skip
    more = trained_names("!norm.*", "!blocks.3.attention.qkv.bias", "blocks.0.*", lora=lora)
    assert {"norm.weight", "norm.bias", "blocks.3.attention.qkv.base_layer.bias"} <= more
    assert names - more == {name for name in names if name.startswith("blocks.0.")}
    other = trained_names(lora=LoraConfig(rank=2, layers=("dense1",)))
    assert {name.split(".")[-4] for name in other - head} == {"dense1"}


@pytest.mark.parametrize(
    ("lora", "freeze", "said"),
    [
        (LoraConfig(rank=2, layers=("qvk",)), (), "unknown dense layer.*did you mean 'qkv'"),
        (LoraConfig(rank=2, layers=("head",)), (), "unknown dense layer"),
        (LoraConfig(rank=2, layers=()), (), "lora.layers is empty"),
        (LoraConfig(rank=2), HEAD_ALONE, "freeze names all adapters"),
        (LoraConfig(alpha=8.0), (), "give --lora.rank as well"),
        (LoraConfig(dropout=0.1), (), "give --lora.rank as well"),
    ],
)
def test_adapters_that_cannot_be_are_refused(lora, freeze, said):
    with pytest.raises(UsageError, match=said):
        trained_names(*freeze, lora=lora)


@pytest.mark.parametrize("model", ["BiT-R50x1", "EfficientNet-B0", "AxialResNet-50-S"])
def test_nets_without_dense_layers_have_no_adapters(model):
    with pytest.raises(UsageError, match="no dense layers to adapt"):
        trained_names(lora=LoraConfig(rank=2), net=make_meta(config(model, 10, 32)))


def test_where_peft_is_missing_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'vitkit\[lora\]'"):
        trained_names(lora=LoraConfig(rank=2))
    assert trained_names(*HEAD_ALONE)  # which needs none


@pytest.mark.parametrize(
    ("model", "side", "alpha"), [("ViT-Pico/4", 8, None), ("T2T-ViT-14", 16, 6.0)]
)
def test_merged_weights_compute_what_the_net_with_adapters_does(model, side, alpha):
    net = pico(model, side).eval()
    lora = LoraConfig(rank=3, alpha=alpha, layers=("qkv", "out", "dense2"))
    images = torch.randn(4, 3, side, side)
    plain = build(model, 10, side).eval()
    with torch.no_grad():
        before = net(images)
        choose_trained(net, (), lora)
        assert torch.equal(net(images), before)  # B is zero
        for name, weight in trained_weights(net).items():
            weight.add_(torch.randn_like(weight) * (0.1 if "lora" in name else 0))
        plain.load_state_dict(merged(net.state_dict(), lora))
        adapted = net(images)
        assert (adapted - before).abs().max() > 0.1
        assert (plain(images) - adapted).abs().max() <= 1e-5 * adapted.abs().max()


def test_alpha_over_rank_scales_the_adapters():
    def change(alpha):
        net = pico()
        choose_trained(net, (), LoraConfig(rank=2, alpha=alpha))
        torch.manual_seed(1)
        with torch.no_grad():
            for name, weight in trained_weights(net).items():
                if "lora" in name:
                    weight.normal_()
            whole = merged(net.state_dict(), LoraConfig(rank=2, alpha=alpha))
        return (whole["blocks.0.attention.qkv.weight"]
                - net.blocks[0].attention.qkv.base_layer.weight)  # fmt: skip

    torch.testing.assert_close(change(6.0), 3 * change(None), rtol=1e-4, atol=1e-5)


def test_adapters_start_from_the_seed_and_a_state_holds_them_to_the_bit(tmp_path):
    given = setup(lora=LoraConfig(rank=2, dropout=0.1))
    state = trained_for(3, given, pico())
    again = trained_for(3, given, pico())
    assert all(torch.equal(a, again.net.state_dict()[n]) for n, a in state.net.state_dict().items())
    folder = save_state(tmp_path, state)
    fresh = fresh_state(pico(), given.config, ENGINE)
    load_state(folder, fresh)
    batch = first_batch(given)
    for one in (state, fresh):
        train_step(given, one, batch, 0.05)
    for name, value in state.net.state_dict().items():
        assert torch.equal(value, fresh.net.state_dict()[name]), name
    for name, value in state.average.items():
        assert torch.equal(value, fresh.average[name]), name


def test_an_adapter_of_a_higher_rank_than_its_layer_is_refused():
    with pytest.raises(
        UsageError, match=r"lora.rank is 97, but blocks.0.attention.\w+ has rank 96"
    ):
        choose_trained(pico(), (), LoraConfig(rank=97))
    choose_trained(pico(), (), LoraConfig(rank=96))


def test_both_heads_of_a_distilled_net_must_learn():
    net = build("ViT-Pico/4", 10, 8, distillation_token=True)
    with pytest.raises(UsageError, match="freeze names the head_distillation"):
        choose_trained(net, HEAD_ALONE, NO_LORA)
    choose_trained(net, ("*", "!head*"), NO_LORA)
