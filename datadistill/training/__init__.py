"""Training of networks on real or distilled data, and their accuracy."""
