"""Contract tests to inherit: what every space and every task must do, a user's own too. They need pytest."""
