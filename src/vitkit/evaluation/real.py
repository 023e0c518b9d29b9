"""ReaL: ImageNet's validation images with every label that people found to be right.

"Are we done with ImageNet?" (Beyer et al. 2020, arXiv 2006.07159); the file is real.json of
google-research/reassessed-imagenet: for ILSVRC2012_val_00000001 and each that follows the list of
its class numbers, 0 to 999. An image may have several, or none; those with none are left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitkit.data.checks import DataError, first_line

CLASSES = 1000
LARGEST = 2**26  # bytes; the published file has under a million


def read_real(file: str | Path) -> list[list[int]]:
    """The labels of each validation image in order. Raises DataError for any other file."""
    path = Path(file).expanduser()
    advice = "give real.json of google-research/reassessed-imagenet"
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path}: has more than {LARGEST:,} bytes; {advice}")
        listed = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read: {error.strerror}; {advice}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: holds no JSON: {first_line(error)}; {advice}") from error
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{path}: holds no list of lists of class numbers; {advice}")
    for place, labels in enumerate(listed):
        if not is_labels(labels):
            raise DataError(
                f"{path}: entry {place} is {str(labels)[:50]}; expected a list of class numbers "
                f"from 0 to {CLASSES - 1}; {advice}"
            )
    return listed


def is_labels(value: object) -> bool:
    return isinstance(value, list) and all(
        type(label) is int and 0 <= label < CLASSES for label in value
    )


def right_by_real(predicted: np.ndarray, listed: Sequence[Sequence[int]]) -> np.ndarray:
    """Predicted ImageNet numbers (N,), -1 for none of them, and each image's labels -> (N,)
    float64: 1 where the prediction is among them, 0 where it is not, NaN where there are none."""
    return np.array(
        [
            float(number in labels) if labels else np.nan
            for number, labels in zip(predicted.tolist(), listed, strict=True)
        ]
    )
