"""flow: the most that the class token of the last layer can send to each input token."""

from pathlib import Path

import networkx
import numpy as np
import pytest
import torch

from vitkit.errors import UsageError
from vitkit.inspection.flow import flow, note_on_flow, saturated
from vitkit.inspection.rollout import with_residual

GOLDEN = Path(__file__).parents[1] / "golden" / "attention-rollout-and-flow" / "io.npz"


def random_attention(*shape: int, seed: int = 0, sharp: float = 1) -> np.ndarray:
    """With zeros here and there, as restricted attention has them."""
    draws = np.random.default_rng(seed)
    maps = np.exp(sharp * draws.normal(size=shape)) * (draws.random(shape) < 0.7)
    maps += 1e-12 * np.eye(shape[-1])
    return maps / maps.sum(-1, keepdims=True)


def by_networkx(maps: np.ndarray, shares: np.ndarray) -> np.ndarray:
    capacities, graph = with_residual(maps), networkx.DiGraph()
    layers, tokens = capacities.shape[:2]
    for i in range(tokens):
        graph.add_edge("source", (layers, i), capacity=shares[i])
    for layer in range(layers):
        for i in range(tokens):
            for j in range(tokens):
                graph.add_edge((layer + 1, i), (layer, j), capacity=capacities[layer, i, j])
    flows = [networkx.maximum_flow_value(graph, "source", (0, j)) for j in range(tokens)]
    return np.array(flows)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_it_is_that_of_the_definition(kind):
    with np.load(GOLDEN) as arrays:
        found = flow(kind(arrays["attention"]))
        np.testing.assert_allclose(found, arrays["class_token_flow"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "tokens", "sharp", "token"), [(1, 5, 1, 0), (2, 6, 1, 0), (3, 6, 3, 2), (5, 8, 5, 7)]
)
def test_it_is_the_maximum_flow_to_one_part_in_a_hundred_million(layers, tokens, sharp, token):
    maps = random_attention(layers, 2, tokens, tokens, seed=layers, sharp=sharp)
    expected = by_networkx(maps, np.eye(tokens)[token])
    np.testing.assert_allclose(flow(maps, token), expected, rtol=0, atol=1e-8)


def test_where_the_head_reads_several_tokens_each_sends_its_share():
    maps, shares = random_attention(3, 1, 7, 7, sharp=3), np.array([0, 0, 3, 1, 2, 4, 0]) / 10
    expected = by_networkx(maps, shares)
    np.testing.assert_allclose(flow(maps, shares), expected, rtol=0, atol=1e-8)
    assert np.array_equal(flow(maps, torch.from_numpy(shares)), flow(maps, shares.tolist()))
    np.testing.assert_allclose(flow(maps, np.eye(7)[2]), flow(maps, 2), rtol=0, atol=1e-12)


def test_it_is_at_most_what_the_source_sends_and_what_leads_to_the_token():
    maps = random_attention(4, 1, 30, 30, sharp=2)
    flows = flow(maps)
    assert (flows <= 1 + 1e-12).all()
    assert (flows <= with_residual(maps)[0].sum(axis=0) + 1e-12).all()
    assert flows.std() > 0.01


def test_tokens_that_look_at_themselves_alone_send_nothing_elsewhere():
    assert flow(np.eye(4)[None, None].repeat(3, axis=0)).tolist() == [1, 0, 0, 0]


def test_uniform_attention_in_many_layers_saturates_every_flow_and_that_is_said():
    maps = np.full((8, 1, 6, 6), 1 / 6)
    flows = flow(maps)
    np.testing.assert_allclose(flows, 1, atol=1e-8)
    assert saturated(flows).all()
    assert "say nothing" in note_on_flow(flows, maps)


def test_a_note_counts_the_flows_that_the_source_and_the_first_layer_decide():
    with np.load(GOLDEN) as arrays:
        maps, flows = arrays["attention"], arrays["class_token_flow"]
    assert saturated(flows).tolist() == [i == 7 for i in range(17)]
    assert "Of 17 flows 1 are 1" in note_on_flow(flows, maps)
    assert "and 3 are what leads to the token in the first layer" in note_on_flow(flows, maps)


@pytest.mark.parametrize("token", [-1, 5])
def test_a_token_that_is_not_there_is_refused(token):
    with pytest.raises(UsageError, match=f"no token {token}: this attention is of 0 to 4"):
        flow(np.full((2, 1, 5, 5), 0.2), token)


@pytest.mark.parametrize("shares", [[0.5, 0.5], [1.5, -0.5, 0, 0, 0], [0.5, 0.2, 0.1, 0.1, 0]])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(UsageError, match="or 5 shares of 0 or above whose sum is 1"):
        flow(np.full((2, 1, 5, 5), 0.2), shares)


def test_another_shape_is_refused():
    with pytest.raises(UsageError, match=r"expected that of one image, \(layers, heads"):
        flow(np.zeros((2, 5, 5)))
