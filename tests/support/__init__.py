"""What the tests share: clients of all kinds, handlers that tell what they do, a transport."""
