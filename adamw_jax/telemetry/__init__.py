"""Telemetry: what an optimizer tells of itself while it trains."""
