"""`sparsemask compress`: a recipe from a fully dense network to a small one."""
