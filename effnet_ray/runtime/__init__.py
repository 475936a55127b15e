"""What is Ray's and not training's: sessions, nodes, waiting for workers, preemption."""
