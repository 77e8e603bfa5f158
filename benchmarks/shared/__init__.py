"""What the benchmarks share: servers, load, processes, tables."""
