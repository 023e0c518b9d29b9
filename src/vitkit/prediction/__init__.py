"""A net with its class names and preprocessing, ready to use."""
