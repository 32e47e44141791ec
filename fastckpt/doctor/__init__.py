"""What is wrong with nanochat checkpoints, why, and what to type next.

`fastckpt.doctor.examination` reads the facts (`facts`, `meta_facts`) and hands
them to one module per family of findings; each is made of functions from facts
to `Diagnosis`. Nothing is written and nothing in a file is executed; torch is
needed only where numbers are looked at. From the command line's package this
one takes only what makes text and collapses names.
"""
