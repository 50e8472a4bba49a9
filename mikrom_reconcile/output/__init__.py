"""What people and programs are shown: text, JSON, Markdown and HTML of plans, runs and lists. Pure, like the core.

All that could differ between two calls is an argument: colour, width, the time. Nothing here decides anything, except
what a run comes to (`run_result`).
"""
