"""What is wrong with an environment that a user has, and how it is mended."""
