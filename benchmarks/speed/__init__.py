"""How fast a request, a reply and a cancel are, for docs/performance.md."""
