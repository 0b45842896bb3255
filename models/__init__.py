"""Separation models and losses in pure Keras 3. Knows nothing of files or flags."""
