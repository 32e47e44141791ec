"""Staging: bytes on their way from a file to a device, through a few slots of host memory.

    file --(threads of the core)--> slot --(copy stream)--> device --(check stream)--> proven

While one slot is copied, the next ones are filled, and the leaf digests of the
one before are checked where its bytes have arrived. `ring` has the slots,
`device` what a device must do, `regions` what lies where, `fill` and
`foreign` how the bytes get into the slots, `check` how they are proven on the
device, and `pipeline` is the flow. Host memory is bounded by the ring, device
memory by the tensors and what two slots hold.
"""
