"""The history of a run in SQLite: schema, writing, reading, export and summaries."""
