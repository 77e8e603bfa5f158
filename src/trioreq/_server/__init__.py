"""The server: a nursery that owns the reader, the clients' cancel scopes and the worker pool."""
