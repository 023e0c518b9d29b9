"""Sets of classes that are known by name: ImageNet's, and those of the sets made beside it."""
