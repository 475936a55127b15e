"""The networks: pretrained weights, layers, optimizers, what using one costs."""
