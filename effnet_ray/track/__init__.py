"""Trackers that other people's tools read: MLflow and TensorBoard, told by the driver alone."""
