"""How fast a request, a reply and a cancel are: the figures of docs/performance.md."""
