"""What is generated from the typed knobs: the JSON schema for editors, and the page `docs/knobs.md`."""
