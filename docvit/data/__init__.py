"""Labelled documents and batches of them."""
