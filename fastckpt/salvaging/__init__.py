"""Damaged checkpoints of any format: what of them still stands, and a new file of it.

A file is surveyed (`survey`: what kind it is, what of its structure stands,
the state of every storage), tensors are judged (`wreck`), chosen (`selection`)
and written (`write`). The damaged file is only ever read.
"""
