"""The runtime: supervises sessions and pumps streams."""
