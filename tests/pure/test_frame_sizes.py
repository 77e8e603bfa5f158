"""The sizes of frames for libzmq. Pure; `tests/wire/test_limits.py` asks libzmq itself."""

from __future__ import annotations

from trioreq._protocol import frame_sizes


def test_the_user_has_the_same_bytes_with_curve() -> None:
    assert frame_sizes.on_wire(100, encrypted=False) == 100
    assert frame_sizes.on_wire(100, encrypted=True) == 133


def test_a_routing_id_counts_in_a_handshake() -> None:
    assert frame_sizes.ready("REQ") == 38
    assert frame_sizes.ready("DEALER", b"name") == 45
