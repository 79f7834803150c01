"""A file becomes pages, and pages become patches."""
