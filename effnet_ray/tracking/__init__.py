"""Experiment trackers, MLflow and TensorBoard, fed by the driver alone."""
