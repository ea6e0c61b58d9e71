"""Starts, watches and stops an OpenAI-compatible server, or uses one that runs."""

from specdec.serving.server import serve
from specdec.synthesis.endpoint import Capabilities, Endpoint

__all__ = ["Capabilities", "Endpoint", "serve"]
