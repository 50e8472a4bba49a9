"""Text to documents that obey their schema: YAML, schema errors in words, variables, host patterns."""
