"""What `benchmarks/gpu_check.py` looks at, a case each, and the rows that it prints."""
