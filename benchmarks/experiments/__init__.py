"""What holds under a load that is long, large or hostile, for docs/reliability.md."""
