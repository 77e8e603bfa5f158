"""The client: any number of tasks send requests on one connection."""
