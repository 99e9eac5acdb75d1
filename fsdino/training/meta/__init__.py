"""Stage 2: the segmenter learns from episodes of base classes."""
