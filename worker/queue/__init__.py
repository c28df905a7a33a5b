"""Redis through dramatiq: wake-up hints, never money."""
