"""Files out of damaged ones.

A file is surveyed (`fastckpt.surveying`), tensors are chosen (`selection`),
gathered (`gather`) and written (`write`). The damaged file is only ever read.
"""
