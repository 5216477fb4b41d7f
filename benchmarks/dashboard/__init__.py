"""The Dashboard with many peers and steps."""
