"""Float32 by machine code (`fastassoc.kernels.cpu`)."""
