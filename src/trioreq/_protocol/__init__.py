"""The wire protocol and the bookkeeping: bytes and events in, values out.

Nothing here uses trio or zmq, waits, or reads a clock.
"""
