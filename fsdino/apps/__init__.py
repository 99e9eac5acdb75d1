"""Things a person looks at: the demo and its report, segmented folders."""
