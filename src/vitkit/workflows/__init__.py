"""One user-level job each, wiring the floors below."""
