"""Tasks of a control worker and of Beat, and what they keep about runs and sources."""
