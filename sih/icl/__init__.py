"""In-context learning, at Ren's three levels. Nothing here reads weights."""
