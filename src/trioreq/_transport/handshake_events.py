"""The monitor's events of handshakes that failed, as reasons."""

from __future__ import annotations

import errno
import struct

import zmq

from .._protocol.handshakes import Failure

EVENT = struct.Struct("=Hi")  # the first frame of a monitor's event: its number and value

# Values of HANDSHAKE_FAILED_PROTOCOL; all others are of commands.
REASONS = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): Failure.MECHANISM,
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): Failure.KEYS,
    int(zmq.PROTOCOL_ERROR_ZMTP_KEY_EXCHANGE): Failure.KEYS,
}
NOT_OF_READING = (0, errno.EAGAIN, errno.EINTR)  # no read fails with these


def failure_of(event: int, value: int) -> Failure:
    """Why a handshake failed.

    Args:
        event: HANDSHAKE_FAILED_PROTOCOL or HANDSHAKE_FAILED_NO_DETAIL.
        value: An error of the protocol; or the errno of the read that failed. After a timeout no
            read has failed, and libzmq reports the current value of errno.
    """
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return REASONS.get(value, Failure.MALFORMED)
    return Failure.TIMED_OUT if value in NOT_OF_READING else Failure.LEFT
