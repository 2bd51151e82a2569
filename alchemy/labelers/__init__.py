"""Labelers: levels of theory behind one staged protocol (`base.Labeler`)."""
