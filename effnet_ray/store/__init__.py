"""The model store: immutable, versioned releases."""
