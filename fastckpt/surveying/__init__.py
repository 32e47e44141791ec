"""What still stands of a file, whatever happened to it: one answer for verify, inspect, salvage, plot and doctor.

`survey` tells what kind of file it is, what of its structure stands, and the
state of every storage; the fates of tensors follow (`Wreck.fates`).
"""
