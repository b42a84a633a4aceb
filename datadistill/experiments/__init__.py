"""Published and shipped results, from their recipes."""
