"""What goes wrong with checkpoints."""

from __future__ import annotations

from vitkit.errors import VitkitError


class CheckpointError(VitkitError):
    """A checkpoint is damaged, foreign, or of another net; the message says which and where."""
