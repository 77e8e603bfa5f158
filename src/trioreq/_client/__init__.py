"""The client: requests of any number of tasks on one connection."""
