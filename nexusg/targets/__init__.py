"""Local services: which one a stream goes to, and how it is dialled."""
