"""A training peer: it finds the run, trains, recovers from failures and publishes its metrics."""
