"""Averaging with hivemind: the only package that subclasses or patches its averaging and optimizer classes."""
