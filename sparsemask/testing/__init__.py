"""Contract tests that ship with the toolkit, for its own parts and for a user's. They need pytest."""
