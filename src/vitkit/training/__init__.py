"""The training loop and what it needs; evaluators come to it as callables."""
