"""The page for people without a terminal: a server on this machine, and what the browser shows."""
