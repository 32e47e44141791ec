"""nanochat's checkpoint directories: what is in them, whether it belongs together, and converting them.

A directory holds, for each step, ``model_000500.pt``, ``meta_000500.json`` and
one ``optim_000500_rank0.pt`` per rank. Nothing here imports torch, nanochat or
any of its model code: files of every revision are taken as they are.
"""
