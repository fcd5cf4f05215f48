"""The development authorizer, in place of namek. For development and tests, and says so."""
