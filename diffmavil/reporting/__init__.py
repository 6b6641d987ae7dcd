"""A run as a page: figures, template, and what stands on it."""
