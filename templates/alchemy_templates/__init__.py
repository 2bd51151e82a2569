"""Input templates: data only."""
