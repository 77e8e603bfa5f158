"""The servers that are compared, each as short as its user could have written it.

Each module has a function `serve`, which is given the handler and `listening`, to call with the
port once the server can be reached. The servers whose one thread does everything only echo, and are
given no handler.
"""
