"""What tests and benchmarks share: child processes, servers, clients, peers, and measurements.

- ``processes`` runs commands for blocking code, ``children`` for code in trio; ``compiler`` makes
  programs of C source.
- ``programs`` are the modules that run in processes of their own.
- ``servers``, ``clients`` and ``crashing`` start such processes, and talk to them.
- ``zmtp``, ``fuzz`` and ``churn`` are peers that speak ZMTP by hand; ``generator`` is one in C,
  which makes load.
- ``cable`` joins two network namespaces by a line that can lose packets and be cut.
- ``measurements`` puts these together; a test runs one in short, and a benchmark in full.

Nothing in here imports tests or benchmarks.
"""
