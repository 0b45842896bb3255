"""From videos of people who talk to 3 s pieces of sound, face embeddings, mixtures and their tables."""
