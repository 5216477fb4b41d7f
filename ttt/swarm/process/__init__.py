"""Processes of a swarm: launching, supervising and stopping them, their status files and their terminal output."""
