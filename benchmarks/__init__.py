"""Speed of the parts, each measured against eager code and against the limit of the machine it runs on."""
