"""specdec: make, prove, ship and keep drafters for speculative decoding."""

__version__ = "0.1.0"
