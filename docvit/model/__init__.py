"""DocViT and its parts: pure modules."""
