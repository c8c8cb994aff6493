"""A sweep: finding what is left to do, the loop that measures it, and the views of the results."""
