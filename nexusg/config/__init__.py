"""Settings as frozen data, read from YAML with every error at once. Knows nothing of gevent."""
