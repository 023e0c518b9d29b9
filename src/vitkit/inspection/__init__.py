"""What a net has learned."""

from vitkit.inspection.attention import (
    attention,
    notes_on_attention,
    patch_token,
    pool_attention,
    read_by_head,
    recorded,
    token_names,
)
from vitkit.inspection.distance import mean_distances
from vitkit.inspection.embeddings import position_similarity, positions
from vitkit.inspection.faithfulness import areas, faithfulness
from vitkit.inspection.filters import filters
from vitkit.inspection.flow import flow, note_on_flow, saturated
from vitkit.inspection.grad_cam import grad_cam
from vitkit.inspection.lens import lens, lens_accuracy, lens_logits
from vitkit.inspection.neighbours import neighbours
from vitkit.inspection.norms import norms_found, patch_norms
from vitkit.inspection.relevance import relevance
from vitkit.inspection.rollout import rollout, rollout_of

__all__ = [
    "areas", "attention", "faithfulness", "filters", "flow", "grad_cam", "lens", "lens_accuracy",
    "lens_logits", "mean_distances", "neighbours", "norms_found", "note_on_flow",
    "notes_on_attention", "patch_norms", "patch_token", "pool_attention", "position_similarity",
    "positions", "read_by_head", "recorded", "relevance", "rollout", "rollout_of", "saturated",
    "token_names",
]  # fmt: skip
