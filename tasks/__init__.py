"""The steps of the factory and its domain: one file per role. Knows no schedules, pools or command line."""
