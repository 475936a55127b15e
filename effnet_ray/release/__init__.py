"""The model store: immutable, versioned releases, and loading one."""
