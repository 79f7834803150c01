"""Labelled documents, augmentation, sampling and packed batches."""
