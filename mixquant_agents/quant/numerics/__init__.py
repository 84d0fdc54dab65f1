"""How values are rounded: the plain references that every kernel is compared with, and fast forms of them in torch."""
