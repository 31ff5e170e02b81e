"""The Grafana dashboard of the fleet, as a program that writes its JSON."""
