"""Group sparsity on networks of searched connectivity: which channels and ranks of the encoder are needed?"""
