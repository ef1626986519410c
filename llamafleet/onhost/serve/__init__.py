"""The service of one profile: its gate, its server, and how it is asked."""
