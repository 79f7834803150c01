"""Pages as they are drawn, for tests that look at their ink."""

from __future__ import annotations

import numpy as np

from docvit.documents.pages import open_document
from docvit.documents.rendering import Rendering

GRAY = Rendering(mode="L", size=256)


def gray(data, index=0, rendering=GRAY, **options):
    """A page of a document: (H, W) from 0 (black) to 255."""
    with open_document(data, rendering, **options) as document:
        return np.asarray(document[index], float)
