"""`sparsemask serve`: a page in the browser that shows what trained networks make of a picture."""
