"""Corpora, mixtures, features and input pipelines. Knows nothing of models."""
