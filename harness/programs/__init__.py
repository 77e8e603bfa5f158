"""Programs that run in processes of their own: `python -m harness.programs.NAME`."""
