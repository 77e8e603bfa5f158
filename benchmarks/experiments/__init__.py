"""What holds under a load that is long, large or hostile: the figures of docs/reliability.md."""
