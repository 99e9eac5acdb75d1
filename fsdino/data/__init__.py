"""Few-shot segmentation data as episodes: benchmarks on disk, and scenes that are drawn."""
