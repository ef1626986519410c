"""What the build stage of Dockerfile.rtx4090 runs."""
