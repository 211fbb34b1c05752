"""From dropped groups to a smaller network: which channels go, what that costs, and what becomes of their constants."""
