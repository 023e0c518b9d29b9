"""What an inspection can be told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InspectOptions:
    layers: tuple[int, ...] = ()
    """Whose attention to show, 0 the first and -1 the last; by default that of all."""
    heads: tuple[int, ...] = ()
    """Of which heads; by default of all."""
    query: str = "class"
    """Whose attention: class (of a net without a class token the mean of all patches), mean, or
    the patch at ROW,COLUMN."""
    of: str = ""
    """The class that relevance and Grad-CAM are of; by default the one that is predicted."""
    count: int = 128
    """Images that attention distances, patch norms and accuracy by layer are over."""
    show: int = 8
    """The most IMAGES to show; more are left out."""
    neighbours: int = 5
    """Nearest training images of --data to show beside each of IMAGES."""
    flow: bool = False
    """Attention flow of IMAGES as well: a maximum flow for each token, minutes for a large net."""
    maps: bool = False
    """Keep whole attention maps, every query's, in the .npz."""
    untrained: bool = False
    """Measure attention distances of the same net with fresh weights as well."""
