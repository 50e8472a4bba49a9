"""Where specs come from: files now; a source never turns "cannot read" into "nothing wanted"."""
