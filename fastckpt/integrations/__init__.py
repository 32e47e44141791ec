"""Lightning, transformers and accelerate save and resume through fastckpt. Each module needs its library, no other."""
