"""The paths at which machines ask all day whether a process is up. No log, trace, rate or dashboard tells of them."""

PROBES = ("/healthz", "/health", "/api/health", "/readyz", "/metrics")
