"""zmq and the kernel: sockets, whole messages, descriptors, keys. Nothing here uses the server."""
