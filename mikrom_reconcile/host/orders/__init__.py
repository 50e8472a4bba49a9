"""One order from the message to its outcome: preconditions, reservations, the steps of each action."""
