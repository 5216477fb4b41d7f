"""The Generate tab: a prompt becomes images."""
