"""Prepared sets: the byte index, reading from disk or from a remote store, and the local cache of the latter."""
