"""Real swarms on one machine: agreement, failures and costs."""
