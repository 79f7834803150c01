"""Distillation of DocViTs on documents."""
