"""zmq and the kernel: sockets, whole messages, descriptors, keys. Nothing here knows the server."""
