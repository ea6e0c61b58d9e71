"""Starts, watches and stops an OpenAI-compatible server, or uses those that run."""

from specdec.serving.choice import resolve_engine
from specdec.serving.external import connect_servers
from specdec.serving.server import serve

__all__ = ["connect_servers", "resolve_engine", "serve"]
