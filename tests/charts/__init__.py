"""The charts, rendered by the real helm."""
