"""A sweep: what is before it, the loop that measures, and the views of what was measured."""
