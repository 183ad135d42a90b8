"""When and where things run: the command line, the deployment table, schedules and pools. Knows no step's inside."""
