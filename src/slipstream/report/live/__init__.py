"""A run while it trains: its page on a local server, or the terminal."""
