"""What is said on the wire and what follows from it: bytes and events in, values out.

Nothing here knows trio or zmq, waits, or reads a clock.
"""
