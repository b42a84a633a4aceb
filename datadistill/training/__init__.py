"""How a network is trained on data, real or distilled, and how accurate it is then."""
