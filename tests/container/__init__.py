"""Tests of the image: its file, what starts in it, and a container of it."""
