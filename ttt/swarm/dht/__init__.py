"""The DHT of a run: the node, identities, records, their validation, and the access policy."""
