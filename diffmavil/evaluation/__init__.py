"""What the features of a pretrained model know: extraction, linear probe, nearest neighbours, retrieval."""
