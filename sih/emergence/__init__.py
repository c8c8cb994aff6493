"""When a score rises, which rises first, and how sure that is. Arrays in, tables out.

Time is x = log2(step + 1), in octaves. Values are oriented so that a rise is positive.
"""

MIN_CHECKPOINTS = 8  # with fewer there is a trajectory and a bracket, and no decision
