"""The training loop, and the two trainings on documents: supervised, and masked pre-training."""
