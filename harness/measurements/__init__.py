"""What is measured both by a test, in short, and by a benchmark, in full."""
