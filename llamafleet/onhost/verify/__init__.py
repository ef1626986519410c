"""The verification of a build, and its benchmark."""
