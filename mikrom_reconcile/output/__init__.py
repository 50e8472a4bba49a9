"""What people and programs are shown: text, JSON, Markdown and HTML of plans, runs and lists. Pure, like the core.

All that could differ between two calls is an argument. Only what a run comes to is decided here (`run_result`).
"""
