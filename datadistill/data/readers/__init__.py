"""One module for each kind of file that a dataset may lie in."""
