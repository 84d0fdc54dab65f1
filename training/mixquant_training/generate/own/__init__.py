"""Work with the tools that this project ships: their schemas, and results as they really give them."""
