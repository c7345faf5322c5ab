"""What the Triton backend does on a GPU: correctness, determinism, launches, speed and memory, in one command."""
