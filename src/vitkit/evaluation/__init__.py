"""Evaluators: each takes features or a predict function and gives named floats."""

from vitkit.evaluation import fewshot as fewshot
from vitkit.evaluation import topk as topk
