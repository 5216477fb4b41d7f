"""Helpers of the tests: small models, and a server that answers as the Hub does."""
