"""How plans, runs and lists look: text and JSON. Pure: values in, text out."""
