"""Measurements of models: comparison and cost."""
