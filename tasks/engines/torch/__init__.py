"""Models that run here, on a GPU or slowly on the CPU: the extra `torch`. Nothing of it is imported by the worker."""
