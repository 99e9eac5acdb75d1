"""FS-DINO: its parts, loading and saving, and the segmenter interface that every model offers."""
