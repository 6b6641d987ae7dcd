"""From any videos to shards that decode cheaply: what `python -m diffmavil.prepare` does.

`items` lists the work, `transcode` cuts and encodes, `work` does one item, `crew` keeps processes at it, `pack` makes
tars of what they left, `verify` looks at the result.
"""
