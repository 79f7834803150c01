"""Predictions: classification, page strategies, explanations."""
