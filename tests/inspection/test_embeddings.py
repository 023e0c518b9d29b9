"""position_similarity: the cosine of each patch's position embedding with each other's."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from vitkit.inspection.embeddings import position_similarity


@given(
    patches=st.integers(1, 20), width=st.integers(1, 16), prefix=st.integers(0, 2),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_it_is_the_cosine_of_the_patches_without_the_prefix(patches, width, prefix, seed):
    torch.manual_seed(seed)
    positions = torch.randn(1, prefix + patches, width)
    similarity = position_similarity(positions, prefix)
    assert similarity.shape == (patches, patches)
    np.testing.assert_allclose(similarity, cosine_similarity(positions[0, prefix:]), atol=1e-5)


def test_one_token_before_the_patches_is_the_default():
    positions = torch.randn(1, 10, 4)
    torch.testing.assert_close(position_similarity(positions), position_similarity(positions, 1))
    assert position_similarity(positions).shape == (9, 9)


def test_parameters_and_half_precision_give_a_float32_matrix_without_gradient():
    positions = torch.nn.Parameter(torch.randn(1, 10, 4, dtype=torch.bfloat16))
    similarity = position_similarity(positions)
    assert similarity.dtype == torch.float32
    assert not similarity.requires_grad
    torch.testing.assert_close(similarity.diagonal(), torch.ones(9))


def test_a_position_of_zeros_is_like_no_other_and_not_nan():
    positions = torch.randn(1, 5, 4)
    positions[0, 2] = 0
    similarity = position_similarity(positions, prefix=0)
    assert similarity[2].abs().max() == 0
    assert similarity.isfinite().all()
