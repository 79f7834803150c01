"""Names and default values for the options, as plain constants: help must not wait for torch.

`tests/cli/test_defaults.py` compares each with what it repeats.
"""

from __future__ import annotations

STRATEGIES = ("document", "first", "second", "last", "grid", "max-confidence", "soft-vote", "hard-vote")

TARGETS = ("pixels", "ink")

OCR_PAGES = 1  # of each document, from its first, where reading scans is asked for
SPLIT_PAGES = 2000  # of `docvit.inference.split`: where documents begin is seen by every page's words
OCR_SECONDS = 15.0  # of `docvit.documents.ocr`

# of `Recipe` and `PretrainRecipe`
MODEL = "docvit_compact_patch32"
MAX_PAGES = 4
LEARNING_RATE = 1e-3

# of `Recipe`
EPOCHS = 16
BUDGET = 1500
MIX_PAGES = 0.5
LOSE_WORDS = 0.3
WORD_DROPOUT = 0.5
PACKETS = 0.0
SCANS = 0.5
LABEL_SMOOTHING = 0.05
EMA_DECAY = 0.998

# of `PretrainRecipe`
PRETRAIN_EPOCHS = 100
PRETRAIN_BUDGET = 2400
MASK = 0.75
