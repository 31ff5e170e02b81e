"""`aios ab`: the same questions to two or more models or servers, and what may be said of them."""
