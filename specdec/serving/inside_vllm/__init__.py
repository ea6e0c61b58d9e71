"""Modules that vLLM's own process loads: its PYTHONPATH holds this folder. They import nothing of specdec."""
