"""The training loop and what it needs; evaluators come to it as callables. No torch here."""

from vitkit.training import schedules as schedules
