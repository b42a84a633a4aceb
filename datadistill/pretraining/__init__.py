"""Networks that were trained on real data: pools, trajectories of experts, and where inner training starts."""
