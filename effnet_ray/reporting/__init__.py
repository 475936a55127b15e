"""HTML pages and the plots in them, for evaluations and sweeps."""
