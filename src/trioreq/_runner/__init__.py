"""What `trioreq-server` runs: one process that serves, or a supervisor of many."""
