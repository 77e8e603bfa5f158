"""The gateway: a handler that forwards requests to existing servers, as a client of each."""
