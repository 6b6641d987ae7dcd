"""The loop and what it is made of: step, optimisers, schedules, planner, processes, checkpoints, telemetry."""
