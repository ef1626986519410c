"""What a release of llama-cpp-python changed: its sources read, and compared with a known one's."""
