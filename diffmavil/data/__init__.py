"""Clips in, batches out: sources, decoding, crops, log-mel and the order of the stream."""
