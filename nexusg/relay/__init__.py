"""The development relay. It is for development and tests, and says so."""
