"""What the tests share: clients of all kinds, handlers that report what they do, a transport."""
