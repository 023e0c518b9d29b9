"""attention: the rows of each layer's softmax, read beside a pass that stays as it is."""

from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from written_out import KINDS, WITHOUT, images_for, made, written_out

from vitkit.errors import UsageError
from vitkit.inspection.attention import (
    attention,
    notes_on_attention,
    patch_token,
    pool_attention,
    read_by_head,
    recorded,
    token_names,
    watched,
)
from vitkit.models.nets import make
from vitkit.models.variants import build


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_is_the_softmax_that_the_written_out_net_computes_by(kind):
    net = made(kind)
    images = images_for(net)
    logits, maps = written_out(net, images)
    torch.testing.assert_close(logits, net(images), rtol=1e-5, atol=1e-5)  # it is the same net
    found = attention(net, images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(maps, dim=1), rtol=0, atol=1e-5)
    assert found.std() > 0.02  # and it is far from uniform


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", [None, 0])
@torch.no_grad()
def test_the_logits_of_the_pass_are_the_same_to_the_bit(kind, queries):
    net = made(kind)
    images = images_for(net)
    plain = net(images)
    with recorded(net, queries=queries) as maps:
        assert torch.equal(net(images), plain)
    assert all(len(rows) == 2 for rows in maps.values())
    assert torch.equal(net(images), plain)


@pytest.mark.parametrize("kind", ["ViT", "relative", "windows", "T2T-ViT"])
def test_layers_heads_and_tokens_are_chosen_and_negative_numbers_count_from_the_end(kind):
    net = made(kind)
    images = images_for(net)
    whole = attention(net, images)
    some = attention(net, images, layers=[-1, 0], heads=[2, 0], queries=[3, -1, 0])
    expected = whole[:, [-1, 0]][:, :, [2, 0]][:, :, :, [3, -1, 0]]
    torch.testing.assert_close(some, expected, rtol=0, atol=1e-6)
    row = attention(net, images, queries="class")
    torch.testing.assert_close(row, whole[:, :, :, :1], rtol=0, atol=1e-6)
    torch.testing.assert_close(attention(net, images, queries=5), whole[:, :, :, 5:6])


class Largest(TorchDispatchMode):
    """Counts the numbers in the largest tensor that is made; views of what is given are not."""

    def __init__(self, given):
        super().__init__()
        self.given, self.numbers = given.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if isinstance(result, torch.Tensor) and (result.untyped_storage().data_ptr() != self.given):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("positions", ["1d", "relative"])
def test_the_row_of_one_token_costs_memory_in_proportion_to_the_tokens(positions):
    net = build("ViT-Femto/2", 10, 48, positions=positions).eval()
    tokens, width, heads = net.config.tokens, net.config.width, net.config.heads
    readings = []
    with torch.no_grad(), watched(net, [0], readings.append):
        net(images_for(net, 1))
    with Largest(readings[0].qkv) as largest:
        readings[0].rows(range(heads), torch.tensor([0]))
    assert 0 < largest.numbers <= 2 * tokens * width < heads * tokens**2 / 2
    with Largest(readings[0].qkv) as largest:
        readings[0].rows(range(heads), None)
    assert largest.numbers >= heads * tokens**2


def test_a_batch_is_worked_through_in_parts(monkeypatch):
    net = made("ViT")
    images = images_for(net, 5)
    whole = attention(net, images)
    monkeypatch.setattr(import_module("vitkit.inspection.attention"), "AT_ONCE", 1)
    torch.testing.assert_close(attention(net, images), whole, rtol=0, atol=1e-6)


def test_a_net_in_half_precision_gives_rows_in_single_precision():
    net = made("ViT")
    whole = attention(net, images_for(net))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(net, images_for(net))
    half = attention(net.bfloat16(), images_for(net).bfloat16())
    for found in (mixed, half):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), rtol=0, atol=1e-6)
        assert 0 < (found - whole).abs().max() < 0.1


def test_what_is_kept_is_of_the_newest_pass_and_nothing_stays_on_the_net():
    net = made("ViT")
    one, other = images_for(net, 2).split(1)
    with torch.no_grad(), recorded(net, layers=[1]) as maps:
        net(one)
        net(other)
    assert torch.equal(maps[1], attention(net, other, layers=[1])[:, 0])
    with pytest.raises(RuntimeError, match="stopped"), recorded(net):
        raise RuntimeError("stopped")
    assert not any(module._forward_hooks for module in net.modules())


def test_a_recorded_pass_can_still_be_trained():
    net = made("ViT").train()
    net(images_for(net)).sum().backward()
    plain = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    with recorded(net) as maps:
        net(images_for(net)).sum().backward()
    assert all(
        torch.equal(p.grad, g) for p, g in zip(net.parameters(), plain, strict=True)
    ) and not any(rows.requires_grad for rows in maps.values())


@pytest.mark.parametrize("config", WITHOUT, ids=lambda config: type(config).__name__)
def test_a_net_without_attention_among_tokens_is_refused(config):
    net = make(config).eval()
    for ask in (lambda: attention(net, images_for(net)), lambda: token_names(net)):
        with pytest.raises(UsageError, match=r"; filters and Grad-CAM apply$"):
            ask()
    assert pool_attention(net, images_for(net)) is None
    assert notes_on_attention(net) == ()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [({"layers": [3]}, "there is no layer 3: this net has 3, 0 to 2, or -1 to -3 from the end"),
     ({"layers": [0, -4]}, "no layer -4"),
     ({"heads": [3]}, "there is no head 3: this net has 3, 0 to 2"),
     ({"queries": [25]}, "there is no token 25: this net has 25, 0 to 24"),
     ({"queries": "register"}, "queries 'register' is not known"),
     ({"layers": []}, "no layer is chosen; name one of 0 to 2")],
    ids=str,
)  # fmt: skip
def test_what_the_net_has_not_is_refused_and_the_range_named(chosen, message):
    net = made("ViT")
    with pytest.raises(UsageError, match=message):
        attention(net, images_for(net), **chosen)


def test_the_class_token_of_a_net_that_has_none_is_refused():
    net = made("mean")
    with pytest.raises(UsageError, match="this net has no class token: it reads the mean"):
        attention(net, images_for(net), queries="class")


@pytest.mark.parametrize("kind", ["map", "map, norm after"])
@torch.no_grad()
def test_the_probe_of_pooling_map_has_attention_of_its_own(kind):
    net = made(kind)
    images, seen = images_for(net), []
    net.pool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(images)
    patches, pool = seen[0], net.pool
    k = pool.kv(patches).chunk(2, dim=-1)[0].unflatten(-1, (pool.heads, -1)).transpose(1, 2)
    q = pool.q(pool.probe)[0].unflatten(-1, (pool.heads, -1)).transpose(0, 1)  # (h, 1, d)
    expected = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)[:, :, 0]
    torch.testing.assert_close(pool_attention(net, images), expected, rtol=0, atol=1e-6)
    assert pool_attention(made("mean"), images) is None


@pytest.mark.parametrize(
    ("kind", "names"),
    [("ViT", ("class token",)), ("mean", ()), ("T2T-ViT", ("class token",)),
     ("registers", ("class token", "register 1", "register 2")),
     ("distillation", ("class token", "distillation token", "register 1"))],
)  # fmt: skip
def test_tokens_before_the_patches_have_names(kind, names):
    net = made(kind)
    assert token_names(net) == names
    assert len(names) == net.config.prefix


def test_a_patch_has_a_token():
    net = made("registers")  # a grid of 4 by 6
    assert patch_token(net, 0, 0) == 3
    assert patch_token(net, 2, 1) == 3 + 2 * 6 + 1
    with pytest.raises(UsageError, match=r"no patch 4,0: .* rows .* 0 to 3, its columns 0 to 5"):
        patch_token(net, 4, 0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("map")])
@torch.no_grad()
def test_shares_of_the_head_are_what_moves_it(kind):
    """With a norm that changes nothing and a linear head, features are a mean of tokens."""
    net = made(kind)
    net.norm = torch.nn.Identity()
    if kind == "distillation":
        net.head_distillation = net.head
    shares, tokens = read_by_head(net), net.encode(images_for(net))
    assert shares.sum() == pytest.approx(1)
    if kind == "registers":  # "token+mean": side by side, each half of what the head reads
        class_token, mean = 2 * shares[:1] @ tokens[:, :1], 2 * shares[1:] @ tokens[:, 1:]
        expected = torch.cat([class_token, mean], dim=-1)
    else:
        expected = shares @ tokens
    torch.testing.assert_close(net.features(images_for(net)), expected)


def test_notes_say_what_is_left_out():
    assert "left out" in notes_on_attention(made("T2T-ViT"))[0]
    assert "probe" in notes_on_attention(made("map"))[0]
    assert "restricted" in notes_on_attention(made("axial"))[0]
    assert notes_on_attention(made("ViT")) == ()
