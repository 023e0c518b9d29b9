"""What a net has learned."""

from vitkit.inspection.embeddings import position_similarity, positions
from vitkit.inspection.faithfulness import areas, faithfulness
from vitkit.inspection.filters import filters
from vitkit.inspection.grad_cam import grad_cam
from vitkit.inspection.lens import lens, lens_accuracy, lens_logits
from vitkit.inspection.neighbours import neighbours
from vitkit.inspection.norms import norms_found, patch_norms

__all__ = [
    "areas", "faithfulness", "filters", "grad_cam", "lens", "lens_accuracy", "lens_logits",
    "neighbours", "norms_found", "patch_norms", "position_similarity", "positions",
]  # fmt: skip
