"""Speed and memory of sampling."""
