"""Paths of probes and scrapers. Logs, traces, rates and dashboards leave them out."""

PROBES = ("/healthz", "/health", "/api/health", "/readyz", "/metrics")
