"""The stages of a round. Each is a function (context, state) → outputs; the loop commits the outputs."""
