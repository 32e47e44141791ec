"""Where the bytes are: digests of 16 KiB leaves, XXH3-64, and chunks of the codec planes decoded.

``leaf_hash`` and ``planes`` have the Triton kernels, ``launch`` and
``decode_planes`` run them, and ``dispatch`` says which engine is live on a
device and why. Triton is optional: only the kernels import it.
"""
