"""What the chat layer (``turns``), recording (``recording``) and the store (``store``) cost beside an engine."""
