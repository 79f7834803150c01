"""`ModelError`: what goes wrong with models."""

from __future__ import annotations

from docvit.errors import UserError


class ModelError(UserError):
    """A model that cannot be loaded or converted; the message says why and what to do."""


NO_NUMBERS = "the model gives no numbers (NaN): its weights are damaged, or overflowed in half precision"
