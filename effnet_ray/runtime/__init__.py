"""Ray sessions, nodes, actors and preemption, independent of training."""
