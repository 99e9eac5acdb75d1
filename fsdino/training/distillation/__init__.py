"""Stage 1: the adapter learns to give the embeddings of SAM's image encoder."""
