"""Grids, bit packing, the residual lattice of R2Q and the contract that every quantization method keeps."""
