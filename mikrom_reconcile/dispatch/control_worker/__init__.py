"""Tasks of a control worker, the schedule that Beat keeps, and metrics."""
